"""Calibration: how the hidden states of a backbone vary over questions and images that nobody edits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones import Backbone, TokenBatch
from ...errors import BackboneError, CheckpointError, InvalidInputError, NotFoundError
from ...files import cache_folder
from ...progress import Progress, no_progress
from ...samples import ImageSource, Question
from ...training.checkpoints import load_tensors, save_tensors
from ..shared.neutral_questions import HARD_QUESTIONS, IMAGE_QUESTIONS, NEUTRAL_QUESTIONS, Grid
from ..shared.reading import KeptLayer, Template, last_of_prompt
from .config import FittedConfig
from .drawn_images import drawn_images
from .thresholds import least_image_similarity, least_reading, least_text_similarity
from .whitening import Whitening

FILE: Final = "calibration.safetensors"
DRAWN_IMAGES: Final = 96
FEWEST_IMAGES: Final = 16
_VERSION: Final = 5
"""Changes with everything that a calibration is computed from."""
_CALIBRATED: Final = ("layer", "content_layer", "reading_layer", "false_firing", "image_matches", "reading_matches")
"""Settings of `FittedConfig` that a calibration depends on."""
_BATCH: Final = 24
_KEPT_STATES: Final = 64
"""Last tokens of neutral questions that are kept as examples of what no edit should change."""
_TOKENS_PER_IMAGE: Final = 16
"""Tokens of an image that the statistics are computed from; its content has all of them."""
_IMAGES_WITH_ALL_QUESTIONS: Final = 6


@dataclass(frozen=True)
class Modality:
    """Statistics of questions with an image, or of questions without one.

    content: of tokens of images, or of questions without one. reading: of the last tokens of prompts.
    least_similarity: from which two questions may be about the same thing; of the contents of images, or of the tokens
    of texts.
    least_reading: from which two readings may be of the same question about an image; 0 for texts, which are found by
    their tokens.
    neutral: hidden states of last tokens of prompts at the edit layer.
    """

    content: Whitening
    reading: Whitening
    least_similarity: float
    least_reading: float
    neutral: Float[Tensor, "questions width"]

    def to(self, device: torch.device) -> Modality:
        """The same on another device."""
        return replace(
            self,
            content=self.content.to(device),
            reading=self.reading.to(device),
            neutral=self.neutral.to(device),
        )


@dataclass(frozen=True)
class Calibration:
    """What fitted experts need to know of a backbone, and nothing of any edit.

    image: None for text-only models. name: identifies the calibration; that of the built-in questions and images has
    the same name on every machine.
    """

    text: Modality
    image: Modality | None
    template: Template
    name: str

    @classmethod
    def without_statistics(cls, backbone: Backbone) -> Calibration:
        """A calibration that knows nothing of the backbone: experts have their shapes with it, and find nothing."""
        width = backbone.width
        plain = Modality(Whitening.none(width), Whitening.none(width), 1.0, 1.0, torch.zeros(1, width))
        return cls(plain, plain if backbone.reads_images else None, Template.of(backbone), "")

    def to(self, device: torch.device) -> Calibration:
        """The same on another device."""
        image = None if self.image is None else self.image.to(device)
        return Calibration(self.text.to(device), image, self.template, self.name)

    def save(self, folder: str | Path, backbone: Backbone, config: FittedConfig) -> Path:
        """Write the calibration into a folder, from which `load` reads it."""
        tensors: dict[str, Tensor] = {}
        thresholds, readings = {}, {}
        for kind, found in (("text", self.text), ("image", self.image)):
            if found is None:
                continue
            thresholds[kind], readings[kind] = found.least_similarity, found.least_reading
            tensors[f"{kind}.neutral"] = found.neutral
            for part, whitening in (("content", found.content), ("reading", found.reading)):
                tensors |= {f"{kind}.{part}.{name}": tensor for name, tensor in whitening.tensors.items()}
        note = {
            "made_for": _made_for(backbone, config),
            "least_similarity": thresholds,
            "least_reading": readings,
            "template": [self.template.before, self.template.after],
            "name": self.name,
        }
        file = Path(folder) / FILE
        save_tensors(file, tensors, note)
        return file

    @classmethod
    def load(cls, folder: str | Path, backbone: Backbone, config: FittedConfig) -> Calibration:
        """Read what `save` wrote.

        Raises `CheckpointError` if there is none or it is damaged, `BackboneError` if it was made for another model or
        for other layers.
        """
        file = Path(folder) / FILE
        tensors, note = load_tensors(file)
        found = note.get("made_for")
        if not isinstance(found, dict):
            raise CheckpointError(f"{file} holds no calibration. Make one with `liveedit calibrate`.")
        here = backbone.fingerprint
        # The model first: it may not have the layers of a calibration for another one.
        if here.items() <= found.items():
            given = {name: getattr(config, name) for name in _CALIBRATED if getattr(config, name) is not None}
            # Layers that are given and others that were calibrated may not go together.
            here = _made_for(backbone, config) if given.items() <= found.items() else {**here, **given}
        if found != here:
            raise BackboneError(
                f"The calibration in {str(folder)!r} was made for another model, or with other settings: {found}; here "
                f"it is {here}. Make one with `liveedit calibrate`."
            )
        # Copies lie where new tensors lie: how a matrix product rounds may depend on the address of its factors.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            kinds = {kind: _modality(tensors, kind, note) for kind in note["least_similarity"]}
            return cls(kinds["text"], kinds.get("image"), Template(*note["template"]), note["name"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} holds no whole calibration ({error!r}). Make it again.") from error


def calibrated_settings(folder: str | Path) -> dict[str, Any]:
    """The settings of `FittedConfig` that a saved calibration was made with.

    Raises `NotFoundError` if the folder holds none, `CheckpointError` if it is damaged.
    """
    if not (Path(folder) / FILE).is_file():
        raise NotFoundError(
            f"There is no trained editor and no calibration in {str(folder)!r}. Make a calibration with "
            "`liveedit calibrate --out DIR`, or train an editor with `liveedit train`, and give --editor-path."
        )
    _, note = load_tensors(Path(folder) / FILE)
    made_for = note.get("made_for")
    if not isinstance(made_for, dict):
        raise CheckpointError(f"{Path(folder) / FILE} holds no calibration. Make one with `liveedit calibrate`.")
    return {name: made_for[name] for name in _CALIBRATED if name in made_for}


def default_calibration(backbone: Backbone, config: FittedConfig, progress: Progress = no_progress) -> Calibration:
    """The calibration by the built-in questions and drawn images: from the cache, or made and kept there."""
    key = hashlib.sha256(repr((backbone.digest(), _made_for(backbone, config))).encode()).hexdigest()[:32]
    folder = cache_folder() / "calibrations" / key
    try:
        return Calibration.load(folder, backbone, config)
    except (CheckpointError, BackboneError):
        made = calibrate(backbone, config, progress=progress)
    with contextlib.suppress(OSError):  # A cache that cannot be written to costs time and nothing else.
        made.save(folder, backbone, config)
    return made


def calibrate(
    backbone: Backbone,
    config: FittedConfig,
    images: Sequence[ImageSource] | None = None,
    progress: Progress = no_progress,
) -> Calibration:
    """Run the built-in questions through a backbone and keep the statistics of its hidden states.

    images: what questions about images are asked about; by default `drawn_images`. They need no labels.
    Raises `InvalidInputError` for fewer than `FEWEST_IMAGES` images, `ImageError` for one that cannot be read.
    """
    if images is not None and len(images) < FEWEST_IMAGES:
        raise InvalidInputError(f"{len(images)} images were given. A calibration needs at least {FEWEST_IMAGES}.")
    if images is not None and not backbone.reads_images:
        raise InvalidInputError(f"{backbone.name} reads text alone, but images were given. Calibrate without them.")
    name = f"built-in {_VERSION}" if images is None else ""
    shown = (images or drawn_images(DRAWN_IMAGES)) if backbone.reads_images else []
    texts = [_flat(grid) for grid in (NEUTRAL_QUESTIONS, HARD_QUESTIONS)]
    about_images = _image_questions(shown) if shown else []
    total = sum(map(len, (*texts, *about_images)))
    reader = _Reader(backbone, config, lambda done: progress(done, total))
    try:
        text = _text_modality(reader, config, *texts)
        image = _image_modality(reader, config, *about_images) if about_images else None
    finally:
        reader.close()
    if not name:
        assert image is not None
        name = hashlib.sha256(image.content.mean.numpy().tobytes() + image.neutral.numpy().tobytes()).hexdigest()
    return Calibration(text, image, reader.template, name)


@dataclass(frozen=True)
class _States:
    """Hidden states of some questions, on the CPU.

    tokens: of each question those that say what it is about, at the content layer. readings, last: the last tokens of
    the prompts at the reading layer and at the edit layer, (questions, width).
    """

    tokens: list[Tensor]
    readings: Tensor
    last: Tensor


class _Reader:
    """Runs questions up to a layer, batch by batch."""

    def __init__(self, backbone: Backbone, config: FittedConfig, report: Callable[[int], None]):
        self.backbone, self.layer = backbone, config.edit_layer(backbone)
        self.template = Template.of(backbone)
        self._content_number = config.layer_of_content(backbone)
        self._content_layer = KeptLayer(backbone, self._content_number)
        self._reading_layer = KeptLayer(backbone, config.layer_of_reading(backbone))
        self._report, self._done = report, 0

    def close(self) -> None:
        self._content_layer.remove()
        self._reading_layer.remove()

    def read(self, questions: Sequence[Question], *, with_tokens: bool = True) -> _States:
        """with_tokens: whether `tokens` are kept; those of images can be many."""
        tokens: list[Tensor] = []
        readings, last = [], []
        for inputs, states in self._run(questions, self.layer):
            if with_tokens:
                tokens += self._tokens(inputs)
            readings.append(last_of_prompt(self._reading_layer.states, inputs.prompt_mask).float().cpu())
            last.append(last_of_prompt(states, inputs.prompt_mask).float().cpu())
        return _States(tokens, torch.cat(readings), torch.cat(last))

    def tokens(self, questions: Sequence[Question]) -> list[Tensor]:
        """`_States.tokens` alone: later layers do not run."""
        return [row for inputs, _ in self._run(questions, self._content_number) for row in self._tokens(inputs)]

    @torch.no_grad()
    def _run(self, questions: Sequence[Question], layer: int) -> Iterator[tuple[TokenBatch, Tensor]]:
        for start in range(0, len(questions), _BATCH):
            inputs = self.backbone.encode(questions[start : start + _BATCH])
            yield inputs, self.backbone.hidden_states(inputs, layer)
            self._done += len(inputs)
            self._report(self._done)

    def _tokens(self, inputs: TokenBatch) -> list[Tensor]:
        states, mask = self._content_layer.states.float().cpu(), self.template.content_mask(inputs).cpu()
        return [row[inside] for row, inside in zip(states, mask, strict=True)]


def _text_modality(
    reader: _Reader, config: FittedConfig, neutral: Sequence[Question], hard: Sequence[Question]
) -> Modality:
    known = reader.read(neutral)
    content, tokens = Whitening.of(torch.cat(known.tokens)), reader.tokens(hard)
    return Modality(
        content=content,
        reading=Whitening.of_wordings(known.readings.unflatten(0, _shape(NEUTRAL_QUESTIONS))),
        least_similarity=least_text_similarity(tokens, _shape(HARD_QUESTIONS), content, config.false_firing),
        least_reading=0.0,
        neutral=_spread(known.last, _KEPT_STATES),
    )


def _image_questions(images: Sequence[ImageSource]) -> tuple[list[Question], list[Question]]:
    """All questions about some of the images; and one question, another each time, about each image."""
    asked = [wording for question in IMAGE_QUESTIONS for wording in question]
    places = _spread(torch.arange(len(images)), _IMAGES_WITH_ALL_QUESTIONS).tolist()
    all_of_some = [Question(prompt, images[place]) for place in places for prompt in asked]
    return all_of_some, [Question(asked[number % len(asked)], image) for number, image in enumerate(images)]


def _image_modality(
    reader: _Reader, config: FittedConfig, all_of_some: Sequence[Question], one_of_each: Sequence[Question]
) -> Modality:
    wordings = len(IMAGE_QUESTIONS), len(IMAGE_QUESTIONS[0])
    readings = reader.read(all_of_some, with_tokens=False).readings.unflatten(0, (-1, *wordings))
    images = reader.read(one_of_each)
    return Modality(
        content=Whitening.of(torch.cat([_spread(tokens, _TOKENS_PER_IMAGE) for tokens in images.tokens])),
        reading=Whitening.of_wordings(readings),
        least_similarity=least_image_similarity(images.tokens, config.image_matches),
        least_reading=least_reading(readings, config.reading_matches),
        neutral=_spread(images.last, _KEPT_STATES),
    )


def _flat(grid: Grid) -> list[Question]:
    return [Question(wording) for relation in grid for asked in relation for wording in asked]


def _shape(grid: Grid) -> tuple[int, int, int]:
    return len(grid), len(grid[0]), len(grid[0][0])


def _spread(rows: Tensor, most: int) -> Tensor:
    """Up to `most` of the rows, spread evenly."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]


def _modality(tensors: dict[str, Tensor], kind: str, note: dict[str, Any]) -> Modality:
    parts = [
        Whitening(**{name: tensors[f"{kind}.{part}.{name}"] for name in ("mean", "basis", "scales", "outside")})
        for part in ("content", "reading")
    ]
    thresholds = float(note["least_similarity"][kind]), float(note["least_reading"][kind])
    return Modality(parts[0], parts[1], *thresholds, tensors[f"{kind}.neutral"])


def _made_for(backbone: Backbone, config: FittedConfig) -> dict[str, Any]:
    return {
        **backbone.fingerprint,
        "layer": config.edit_layer(backbone),
        "content_layer": config.layer_of_content(backbone),
        "reading_layer": config.layer_of_reading(backbone),
        "false_firing": config.false_firing,
        "image_matches": config.image_matches,
        "reading_matches": config.reading_matches,
        "version": _VERSION,
    }
