"""BLIP-2's vision tower and Q-Former, from a folder of transformers or from LAVIS's own files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
)

from ...errors import BackboneError, InvalidInputError, NotFoundError, first_line
from .weight_files import CheckpointFolder, TorchFile, WeightSource, some_names

VISION_PREFIXES = ("vision_model.", "qformer.", "query_tokens")
"""What the names of these weights begin with in transformers."""
BLOCKS_READ = 39
"""BLIP-2 reads EVA-CLIP ViT-g before the last of its forty blocks (https://arxiv.org/abs/2301.12597, section 3.4)."""
VISION_HEAD_WIDTH, QFORMER_HEAD_WIDTH = 88, 64


@dataclass(frozen=True)
class VisionParts:
    """The part of BLIP-2 that turns pixels into features of the Q-Former, (batch, queries, width).

    label: where it comes from. weights: by the names that they have in transformers. queries: the query tokens.
    """

    label: str
    weights: WeightSource
    vision: Blip2VisionConfig
    qformer: Blip2QFormerConfig
    queries: int
    image_processor: Any


def open_vision(path: Path, tower: Path | None = None) -> VisionParts:
    """Open a BLIP-2 folder of transformers, or the .pth that LAVIS released.

    tower: the file of EVA-CLIP ViT-g (eva_vit_g.pth), which LAVIS keeps apart from its .pth; not for folders. Raises
    `NotFoundError` for what is missing, `BackboneError` for what is something else.
    """
    if path.is_dir():
        if tower is not None:
            raise InvalidInputError(
                f"A vision tower ({tower}) was given beside the folder {path}, which has its own. Leave it out; it "
                "belongs to a .pth file of LAVIS."
            )
        return _from_folder(path)
    if not path.is_file():
        raise NotFoundError(f"{path} is not there. Give a BLIP-2 folder of transformers, or a .pth file of LAVIS.")
    return from_lavis(str(path), TorchFile(path), TorchFile(tower) if tower is not None else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The raw `config.json` of a checkpoint folder. Raises `NotFoundError` or `BackboneError`."""
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(f"{path} is not there. Give a checkpoint folder of transformers, with its config.json.")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise BackboneError(f"{path} is not JSON ({error}). Download it again.") from error
    return found if isinstance(found, dict) else {}


def _from_folder(folder: Path) -> VisionParts:
    kind = read_config(folder).get("model_type")
    if kind != "blip-2":
        raise BackboneError(
            f"{folder} holds a model of type {kind!r}, where one of type 'blip-2' is needed. MiniGPT-4 took its vision "
            "tower and Q-Former from the BLIP-2 of flan-t5-xxl."
        )
    weights = CheckpointFolder(folder)
    _check_present(folder, weights)
    try:
        config: Any = Blip2Config.from_pretrained(folder, local_files_only=True)
        image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise BackboneError(
            f"The configuration of {folder} could not be read ({reason}). It needs config.json and "
            "preprocessor_config.json; download them again."
        ) from error
    queries = int(config.num_query_tokens)
    return VisionParts(str(folder), weights, config.vision_config, config.qformer_config, queries, image_processor)


def _check_present(folder: Path, weights: WeightSource) -> None:
    for prefix in VISION_PREFIXES:
        if not any(name.startswith(prefix) for name in weights.names()):
            raise BackboneError(
                f"{folder} has no {prefix.rstrip('.')} among its weights (found: {some_names(weights.names())}). Give "
                "a whole BLIP-2 checkpoint in the format of transformers."
            )


class LavisWeights:
    """LAVIS's weights by the names that they have in transformers.

    The names follow transformers' own conversion script. LAVIS stores no bias of the keys, so the bias of the joint
    projection is (q_bias, 0, v_bias). The tower is searched under `visual_encoder.`, then in its own file.
    """

    def __init__(self, main: WeightSource, tower: WeightSource | None):
        self._main, self._tower = main, tower

    def names(self) -> Iterable[str]:
        """All names as LAVIS has them, those of the tower's own file under `visual_encoder.`."""
        apart = [f"visual_encoder.{name}" for name in self._tower.names()] if self._tower else []
        return [*self._main.names(), *apart]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight."""
        lavis = lavis_name(name)
        if not lavis.endswith(".qkv.bias"):
            return self._raw_shape(lavis)
        q, v = (self._raw_shape(part) for part in _bias_parts(lavis))
        return (3 * q[0],) if q is not None and q == v else None

    def read(self, name: str) -> Tensor:
        """The weight itself."""
        lavis = lavis_name(name)
        if not lavis.endswith(".qkv.bias"):
            return self._raw(lavis)
        q, v = (self._raw(part) for part in _bias_parts(lavis))
        return torch.cat([q, torch.zeros_like(q), v])

    def _raw_shape(self, lavis: str) -> tuple[int, ...] | None:
        found = self._main.shape(lavis)
        if found is None and self._tower and lavis.startswith("visual_encoder."):
            return self._tower.shape(lavis.removeprefix("visual_encoder."))
        return found

    def _raw(self, lavis: str) -> Tensor:
        if self._tower is not None and self._main.shape(lavis) is None:
            return self._tower.read(lavis.removeprefix("visual_encoder."))
        return self._main.read(lavis)


_RENAMED = {
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding.": "visual_encoder.patch_embed.proj.",
    "vision_model.post_layernorm.": "ln_vision.",
    "vision_model.encoder.layers.": "visual_encoder.blocks.",
    "qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
    "qformer.encoder.": "Qformer.bert.encoder.",
}
_RENAMED_INSIDE = {
    "visual_encoder.": {".layer_norm": ".norm", ".self_attn.projection.": ".attn.proj.", ".self_attn.": ".attn."},
    "Qformer.": {"attention.attention.": "attention.self."},
}


def lavis_name(name: str) -> str:
    """What LAVIS calls a weight of transformers' BLIP-2."""
    for ours, theirs in _RENAMED.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for start, changes in _RENAMED_INSIDE.items():
        if name.startswith(start):
            for ours, theirs in changes.items():
                name = name.replace(ours, theirs)
    return name


def _bias_parts(qkv_bias: str) -> tuple[str, str]:
    block = qkv_bias.removesuffix("qkv.bias")
    return f"{block}q_bias", f"{block}v_bias"


def from_lavis(label: str, main: WeightSource, tower: WeightSource | None) -> VisionParts:
    """LAVIS's weights, whose configuration is read off their shapes; images are prepared as LAVIS does it.

    Raises `BackboneError` where no vision tower or no Q-Former is among them.
    """
    weights = LavisWeights(main, tower)
    queries = _needed(label, weights, "query_tokens")
    intermediate = _needed(label, weights, "qformer.encoder.layer.0.intermediate_query.dense.weight")
    vision = _vision_config(label, weights)
    layers = _count(weights, "qformer.encoder.layer.{}.attention.output.dense.weight")
    with_cross = [
        layer
        for layer in range(layers)
        if weights.shape(f"qformer.encoder.layer.{layer}.crossattention.output.dense.weight")
    ]
    qformer = Blip2QFormerConfig(
        hidden_size=queries[2],
        num_hidden_layers=layers,
        num_attention_heads=max(1, queries[2] // QFORMER_HEAD_WIDTH),
        intermediate_size=intermediate[0],
        cross_attention_frequency=with_cross[1] if len(with_cross) > 1 else max(1, layers),
        encoder_hidden_size=vision.hidden_size,
    )
    side = {"height": vision.image_size, "width": vision.image_size}
    return VisionParts(label, weights, vision, qformer, queries[1], BlipImageProcessorPil(size=side))  # type: ignore[arg-type]


def _vision_config(label: str, weights: WeightSource) -> Blip2VisionConfig:
    patches = _needed(label, weights, "vision_model.embeddings.patch_embedding.weight")
    positions = _needed(label, weights, "vision_model.embeddings.position_embedding")
    inner = _needed(label, weights, "vision_model.encoder.layers.0.mlp.fc1.weight")
    blocks = _count(weights, "vision_model.encoder.layers.{}.mlp.fc1.weight")
    return Blip2VisionConfig(
        hidden_size=patches[0],
        intermediate_size=inner[0],
        num_hidden_layers=min(blocks, BLOCKS_READ),
        num_attention_heads=max(1, patches[0] // VISION_HEAD_WIDTH),
        image_size=patches[2] * round((positions[1] - 1) ** 0.5),
        patch_size=patches[2],
    )


def _needed(label: str, weights: WeightSource, name: str) -> tuple[int, ...]:
    shape = weights.shape(name)
    if shape is not None:
        return shape
    theirs = lavis_name(name)
    advice = "Give a BLIP-2 .pth of LAVIS, such as blip2_pretrained_flant5xxl.pth, or a BLIP-2 folder of transformers."
    if theirs.startswith("visual_encoder."):
        advice = "LAVIS keeps the vision tower in a separate file: give eva_vit_g.pth as the vision tower."
    raise BackboneError(f"{label} has no {theirs} (found: {some_names(weights.names())}). {advice}")


def _count(weights: WeightSource, pattern: str) -> int:
    number = 0
    while weights.shape(pattern.format(number)) is not None:
        number += 1
    return number
