"""`liveedit train-smol-llava`: connector first, then connector and adapters. Resumable at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from ...backbones.precision import mixed_precision, multiplies_bfloat16
from ...datasets.photos.catalog import PhotoClass, photo_classes
from ...datasets.photos.folder import PhotoFolder
from ...progress import TaskProgress, no_task_progress
from ..adapters import Adapters
from ..rows import RowPacker, Turn, answer_logits
from ..train import PretrainingRun, optimize
from .parts import PhotoModelParts
from .tower_features import TowerFeatures, compute_tower_features
from .turns import looks_of, own_answers, photo_turns

_ADAPTED: Final = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
"""Linear layers of the language model with an adapter."""
_SIMILAR: Final = 5
"""Classes that count as similar to another."""


@dataclass(frozen=True)
class PhotoTrainingConfig(PretrainingRun):
    """How `smol-llava` is trained.

    views: of each photograph, the photograph itself and random crops. photos, questions: photographs of a step and
    questions about each. texts: rows without an image of a step, whose answers are the language model's own.
    rank: of the adapters.
    """

    backbone: str = "smol-llava"
    views: int = 3
    photos: int = 16
    questions: int = 6
    texts: int = 3
    rank: int = 16
    word_steps: int = 400
    connector_steps: int = 150
    adapter_steps: int = 350
    word_rate: float = 2e-3
    connector_rate: float = 1e-3
    adapter_rate: float = 5e-4


def train_photo_model(
    out: Path,
    photos: PhotoFolder,
    parts: PhotoModelParts,
    config: PhotoTrainingConfig,
    classes: Sequence[PhotoClass] | None = None,
    report: TaskProgress = no_task_progress,
) -> None:
    """Train into `out`/model, and resume an earlier run in `out`.

    classes: what is known of the folder's classes, in its order; by default from the built-in catalogue.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = tuple(classes or photo_classes(found.key for found in photos.classes))
    texts = own_answers(parts.language, out, report)
    seen = compute_tower_features(photos, parts.tower, out, report, views=config.views, seed=config.seed)
    looks = looks_of(photos.path, [photo for _, photo in seen.places], out, report)
    model: Any = parts.build(config.seed)
    losses = _StepLosses(model, parts, seen, known, looks, texts, config)
    connector = model.model.multi_modal_projector
    optimize(connector, losses.words, out / "words.safetensors", config.word_steps, config.word_rate, config, report)
    file = out / "connector.safetensors"
    optimize(connector, losses.answers, file, config.connector_steps, config.connector_rate, config, report)
    adapters = Adapters(model.model.language_model, _ADAPTED, config.rank, config.seed)
    both = nn.ModuleDict({"connector": connector, "adapters": adapters})
    optimize(
        both, losses.answers, out / "adapters.safetensors", config.adapter_steps, config.adapter_rate, config, report
    )
    _save(parts, connector, adapters, config, out / "model")


def _save(
    parts: PhotoModelParts, connector: nn.Module, adapters: Adapters, config: PhotoTrainingConfig, folder: Path
) -> None:
    """Write the whole, adapters merged, as an ordinary checkpoint in float16."""
    adapters.remove()
    whole: Any = parts.build(config.seed)
    whole.model.multi_modal_projector.load_state_dict(connector.state_dict())
    adapters.merge_into(whole.model.language_model)
    parts.processor().save_pretrained(folder)
    whole.half().save_pretrained(folder)


class _StepLosses:
    """The losses of a step: they depend on the weights and the number of the step alone."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        parts: PhotoModelParts,
        seen: TowerFeatures,
        classes: Sequence[PhotoClass],
        looks: dict[str, dict[str, str]],
        texts: Sequence[Turn],
        config: PhotoTrainingConfig,
    ):
        whole: Any = model
        self.connector = whole.model.multi_modal_projector
        self.language = whole.model.language_model.requires_grad_(False)
        if multiplies_bfloat16("cpu"):
            self.language.bfloat16()
        self.image_id = model.config.image_token_id
        self.packer = RowPacker(parts.layout)
        self.seen, self.classes, self.looks, self.texts = seen, classes, looks, texts
        self.config = config
        self._similar = seen.nearest(_SIMILAR)
        self._words = torch.stack([self._word(shown.name) for shown in classes])

    def words(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """How far the image tokens of photographs are from the embedding of their class's name: a quick start."""
        rng = np.random.default_rng([self.config.seed, 5, step])
        chosen, features = self._chosen(4 * self.config.photos, step, rng)
        wanted = self._words[[self.seen.places[index][0] for index in chosen]][:, None]
        image = self.connector(features)
        loss = (image - wanted).square().mean() / self._words.square().mean()
        return loss, {"cosine": F.cosine_similarity(image, wanted, dim=-1).mean().item()}

    def answers(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the answers to questions about photographs, and to texts."""
        config = self.config
        rng = np.random.default_rng([config.seed, 6, step])
        chosen, features = self._chosen(config.photos, step, rng)
        rows: list[tuple[bool, Sequence[Turn]]] = [(True, self._turns(index, rng)) for index in chosen]
        for _ in range(config.texts if self.texts else 0):
            drawn = rng.integers(len(self.texts), size=config.questions // 2)
            rows.append((False, [self.texts[index] for index in drawn]))
        with mixed_precision("cpu"):
            image = self.connector(features)
            _, logits, wanted = answer_logits(self.language, self.packer.pack(rows), image, self.image_id)
        right = (logits.argmax(-1) == wanted).float().mean().item()
        return F.cross_entropy(logits, wanted), {"token_accuracy": 100 * right}

    def _chosen(self, count: int, step: int, rng: np.random.Generator) -> tuple[list[int], Tensor]:
        """Random photographs, each in a random view, with a little noise on what the tower sees."""
        chosen = rng.integers(len(self.seen.places), size=count)
        views = rng.integers(self.config.views, size=count)
        features = self.seen.features[torch.from_numpy(views), torch.from_numpy(chosen)].float()
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(step))
        return chosen.tolist(), features + 0.05 * features.std() * noise

    def _turns(self, index: int, rng: np.random.Generator) -> list[Turn]:
        number, photo = self.seen.places[index]
        others = [shown for place, shown in enumerate(self.classes) if place != number]
        similar = [self.classes[place] for place in self._similar[number]]
        return photo_turns(self.classes[number], similar, others, self.looks[photo], self.config.questions, rng)

    def _word(self, name: str) -> Tensor:
        """The mean embedding of the tokens of a name."""
        ids = self.packer.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        return self.language.embed_tokens.weight[ids].float().mean(0)
