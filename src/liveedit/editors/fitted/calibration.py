"""Calibration: how the hidden states of a backbone vary over questions and images that nobody edits."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens
from ...errors import BackboneError, CheckpointError, InvalidInputError, NotFoundError
from ...files import cache_folder
from ...progress import Progress, no_progress
from ...samples import ImageSource, Question
from ...training.checkpoints import load_tensors, save_tensors
from ..shared.neutral_questions import HARD_QUESTIONS, IMAGE_QUESTIONS, NEUTRAL_QUESTIONS, SHARED_IMAGE_QUESTION
from .config import FittedConfig
from .drawn_images import drawn_images
from .reading import ContentLayer, Template, last_of_prompt, mean_of_image
from .text_similarity import main_tokens, token_similarity
from .whitening import Whitening

FILE: Final = "calibration.safetensors"
DRAWN_IMAGES: Final = 96
FEWEST_IMAGES: Final = 16
_VERSION: Final = 4
"""Changes with everything that a calibration is computed from."""
_CALIBRATED: Final = ("layer", "content_layer", "false_firing", "image_matches")
"""Settings of `FittedConfig` that a calibration depends on."""
_BATCH: Final = 24
_KEPT_READINGS: Final = 64
"""Readings of text questions that are kept as examples of what no edit should change."""


@dataclass(frozen=True)
class Modality:
    """Statistics of questions with an image, or of questions without one.

    content: of image means, or of single tokens of a text. reading: of the last tokens of prompts.
    least_similarity: from which two questions may be about the same thing; of the contents of images, or of the tokens
    of texts.
    neutral: hidden states of last tokens of prompts.
    """

    content: Whitening
    reading: Whitening
    least_similarity: float
    neutral: Float[Tensor, "readings width"]

    def to(self, device: torch.device) -> Modality:
        """The same on another device."""
        return Modality(
            self.content.to(device), self.reading.to(device), self.least_similarity, self.neutral.to(device)
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

    def to(self, device: torch.device) -> Calibration:
        """The same on another device."""
        image = None if self.image is None else self.image.to(device)
        return Calibration(self.text.to(device), image, self.template, self.name)

    def save(self, folder: str | Path, backbone: Backbone, config: FittedConfig) -> Path:
        """Write the calibration into a folder, from which `load` reads it."""
        tensors: dict[str, Tensor] = {}
        thresholds = {}
        for kind, found in (("text", self.text), ("image", self.image)):
            if found is None:
                continue
            thresholds[kind] = found.least_similarity
            tensors[f"{kind}.neutral"] = found.neutral
            for part, whitening in (("content", found.content), ("reading", found.reading)):
                tensors |= {f"{kind}.{part}.{name}": tensor for name, tensor in whitening.tensors.items()}
        note = {
            "made_for": _made_for(backbone, config),
            "least_similarity": thresholds,
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
            here = _made_for(backbone, config)
        if found != here:
            raise BackboneError(
                f"The calibration in {str(folder)!r} was made for another model, or with other settings: {found}; here "
                f"it is {here}. Make one with `liveedit calibrate`."
            )
        # Copies lie where new tensors lie: how a matrix product rounds may depend on the address of its factors.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            kinds = {kind: _modality(tensors, kind, least) for kind, least in note["least_similarity"].items()}
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
    texts = [Question(wording) for relation in NEUTRAL_QUESTIONS for asked in relation for wording in asked]
    shown = _image_questions(images or drawn_images(DRAWN_IMAGES)) if backbone.reads_images else []
    name = f"built-in {_VERSION}" if images is None else ""
    reader = _Reader(backbone, config)
    total = len(texts) + len(shown)
    try:
        text = _text_modality(reader, texts, config.false_firing, lambda done: progress(done, total))
        image = None
        if shown:
            image = _image_modality(reader, shown, config, lambda done: progress(len(texts) + done, total))
    finally:
        reader.close()
    if not name:
        assert image is not None
        name = hashlib.sha256(image.content.mean.numpy().tobytes() + image.neutral.numpy().tobytes()).hexdigest()
    return Calibration(text, image, reader.template, name)


class _Reader:
    """Runs questions up to the edit layer, batch by batch."""

    def __init__(self, backbone: Backbone, config: FittedConfig):
        self.backbone, self.layer = backbone, config.edit_layer(backbone)
        self.template = Template.of(backbone)
        self._content_number = config.layer_of_content(backbone)
        self._content_layer = ContentLayer(backbone, self._content_number)

    def close(self) -> None:
        self._content_layer.remove()

    @torch.no_grad()
    def read(self, questions: Sequence[Question]) -> Iterator[tuple[HiddenTokens, Tensor]]:
        """Hidden states at the edit layer and at the content layer, batch by batch, in order."""
        for start in range(0, len(questions), _BATCH):
            inputs = self.backbone.encode(questions[start : start + _BATCH])
            states = self.backbone.hidden_states(inputs, self.layer).float()
            yield HiddenTokens.of(inputs, states), self._content_layer.states.float()

    @torch.no_grad()
    def texts(self, questions: Sequence[Question]) -> Iterator[Tensor]:
        """(tokens, width) for each question without an image: its own tokens at the content layer, on the CPU."""
        for start in range(0, len(questions), _BATCH):
            inputs = self.backbone.encode(questions[start : start + _BATCH])
            states = self.backbone.hidden_states(inputs, self._content_number).float().cpu()
            mask = self.template.question_mask(inputs).cpu()
            yield from (row[inside] for row, inside in zip(states, mask, strict=True))


def _text_modality(reader: _Reader, questions: Sequence[Question], false_firing: float, report: Any) -> Modality:
    tokens: list[Tensor] = []
    readings: list[Tensor] = []
    for batch, states in reader.read(questions):
        mask = reader.template.question_mask(batch).to(states.device)
        tokens += [row[inside].cpu() for row, inside in zip(states, mask, strict=True)]
        readings.append(last_of_prompt(batch).cpu())
        report(len(tokens))
    content, reading = Whitening.of(torch.cat(tokens)), torch.cat(readings)
    return Modality(
        content,
        Whitening.of(reading),
        _least_text_similarity(reader, content, false_firing),
        _spread(reading),
    )


def _least_text_similarity(reader: _Reader, whitening: Whitening, false_firing: float) -> float:
    """The similarity that all but a share of the hard questions stay below, to all hard questions of the same relation
    about something else. The whitening was computed from other questions."""
    shape = len(HARD_QUESTIONS), len(HARD_QUESTIONS[0]), len(HARD_QUESTIONS[0][0])
    questions = [Question(wording) for relation in HARD_QUESTIONS for asked in relation for wording in asked]
    found = [main_tokens(whitening(states)) for states in reader.texts(questions)]
    tokens, weights = (torch.stack(part).unflatten(0, shape) for part in zip(*found, strict=True))
    nearest = []
    for relation, weight in zip(tokens, weights, strict=True):
        cosines = torch.einsum("swkd,txld->swtxkl", relation, relation)
        similar = token_similarity(cosines, weight[:, :, None, None], weight)
        for subject in range(len(relation)):
            similar[subject, :, subject] = -1.0
        nearest.append(similar.flatten(2).amax(-1).flatten())
    return float(torch.cat(nearest).quantile(1 - false_firing))


def _spread(readings: Tensor) -> Tensor:
    """Up to `_KEPT_READINGS` of the readings, spread evenly."""
    return readings[torch.linspace(0, len(readings) - 1, min(_KEPT_READINGS, len(readings))).long()]


def _image_questions(images: Sequence[ImageSource]) -> list[Question]:
    """Three questions about each image: the shared one in two wordings, and a further one."""
    return [
        Question(prompt, image)
        for number, image in enumerate(images)
        for prompt in (*SHARED_IMAGE_QUESTION, IMAGE_QUESTIONS[number % len(IMAGE_QUESTIONS)])
    ]


def _image_modality(reader: _Reader, questions: Sequence[Question], config: FittedConfig, report: Any) -> Modality:
    contents: list[Tensor] = []
    readings: list[Tensor] = []
    done = 0
    for batch, states in reader.read(questions):
        contents.append(mean_of_image(states, batch.to(states.device)).cpu())
        readings.append(last_of_prompt(batch).cpu())
        done += len(batch)
        report(done)
    content, reading = torch.cat(contents)[::3], torch.cat(readings)
    return Modality(
        Whitening.of(content),
        Whitening.of(reading),
        _least_image_content(content, config.image_matches),
        _spread(reading),
    )


def _least_image_content(content: Tensor, matches: float) -> float:
    """The similarity that all but a share of the pairs of images stay below. content: (images, width).

    Each half is whitened by the statistics of the other.
    """
    half = len(content) // 2
    pairs = []
    for known, tested in ((content[:half], content[half:]), (content[half:], content[:half])):
        whitened = F.normalize(Whitening.of(known)(tested), dim=-1)
        first, second = torch.triu_indices(len(whitened), len(whitened), offset=1)
        pairs.append((whitened[first] * whitened[second]).sum(-1))
    return float(torch.cat(pairs).quantile(1 - matches))


def reading_margin(
    reading: Float[Tensor, "*pairs"], content: Float[Tensor, "*pairs"], config: FittedConfig
) -> Float[Tensor, "*pairs"]:
    """How far the similarity of two readings is within what is allowed for contents of this similarity."""
    allowed = config.reading_tolerance + config.reading_slope * (1 - content)
    return torch.minimum(reading - config.least_reading, allowed - (1 - reading))


def _modality(tensors: dict[str, Tensor], kind: str, least: float) -> Modality:
    parts = [
        Whitening(**{name: tensors[f"{kind}.{part}.{name}"] for name in ("mean", "basis", "scales", "outside")})
        for part in ("content", "reading")
    ]
    return Modality(parts[0], parts[1], float(least), tensors[f"{kind}.neutral"])


def _made_for(backbone: Backbone, config: FittedConfig) -> dict[str, Any]:
    return {
        **backbone.fingerprint,
        "layer": config.edit_layer(backbone),
        "content_layer": config.layer_of_content(backbone),
        "false_firing": config.false_firing,
        "image_matches": config.image_matches,
        "version": _VERSION,
    }
