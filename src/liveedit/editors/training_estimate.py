"""What a training would take, told from a few cases and a few steps before anything long is begun."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..backbones import Backbone
from ..backbones.hidden_states import IN_MEMORY_BYTES, HiddenStateCache
from ..samples import EditCase
from ..training.distributed import ALONE, Processes
from ..training.trainer import StageConfig, Trainer, TrainingConfig, check_cases
from .liveedit.modules import LiveEditModules
from .liveedit.recipe import TrainingRecipe, new_modules
from .liveedit.task import LiveEditTask
from .trained import Report

SAMPLE: Final = 8
"""Cases that an estimate is made from."""

_STEPS, _ENOUGH_SECONDS = 3, 5.0
"""Steps that are timed at most, and the time after which nothing is tried once more."""

_STATE_BYTES: Final = 2
"""Kept states are bfloat16."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage: `steps` of `batch` edits at `seconds_per_step`; `seconds` with its validations, `validations`."""

    name: str
    steps: int
    batch: int
    seconds_per_step: float
    validations: int
    seconds: float


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training would take, on this machine and with as many processes as made the estimate.

    Memory is that of one process. Stages are taken to run to their end, which early stopping may spare.
    """

    processes: int
    device: str
    cases: int
    validation_cases: int
    inputs: int
    tokens_per_image_input: float | None
    tokens_per_text_input: float | None
    states_bytes: int
    """Kept states of all inputs, bfloat16; each process keeps them all."""
    states_on_disk: bool
    """Whether they go to a file in the output folder rather than to memory."""
    backbone_bytes: int
    parameters: int
    parameters_bytes: int
    gradients_bytes: int
    moments_bytes: int
    """The two moments of AdamW, float32."""
    peak_memory_bytes: int
    """Of the process in main memory, kept states included where they are kept there."""
    gpu_peak_bytes: int | None
    gpu_total_bytes: int | None
    fill_seconds: float
    validation_seconds: float
    """One validation."""
    stages: tuple[StageEstimate, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate_training(
    backbone: Backbone,
    cases: Sequence[EditCase],
    recipe: TrainingRecipe,
    processes: Processes = ALONE,
    planned: int | None = None,
    report: Report = lambda what, done, total, figures: None,
) -> TrainingEstimate:
    """Run some cases through the backbone and take some steps of every stage with modules that are thrown away.

    Nothing is written. planned: how many cases the training would have where `cases` are only some of them. The joint
    stage is timed under a router that knows nothing yet, and so sends more inputs through the backbone's last layers
    than a trained one does. Raises what the training would raise for cases, settings and images that do not fit.
    """
    planned = planned or len(cases)
    check_cases(planned, recipe.training, processes)
    scratch = _Scratch(backbone, cases, recipe, processes, planned)
    states = scratch.fill(cases)
    before_steps = _peak_bytes()
    stages = [stage for stage in recipe.training.stages if stage.steps]
    step_seconds: list[float] = []
    for done, stage in enumerate(stages):
        report("dry run: a step of each stage", done, len(stages), {})
        step_seconds.append(scratch.step_seconds(stage))
    report("dry run: a step of each stage", len(stages), len(stages), {})
    validation = scratch.validation_seconds()
    after_steps = _peak_bytes()
    found = tuple(
        _stage_estimate(stage, scratch.batch(stage), seconds, validation, recipe.training)
        for stage, seconds in zip(stages, step_seconds, strict=True)
    )
    parameters = list(scratch.modules.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    kept = 0 if states.on_disk else states.bytes
    gpu = backbone.layer_device(recipe.editor.layer)
    return TrainingEstimate(
        processes=processes.count,
        device=_device_name(gpu),
        cases=planned,
        validation_cases=recipe.training.validation,
        inputs=states.inputs,
        tokens_per_image_input=states.image_tokens,
        tokens_per_text_input=states.text_tokens,
        states_bytes=states.bytes,
        states_on_disk=states.on_disk,
        backbone_bytes=sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters()),
        parameters=sum(parameter.numel() for parameter in parameters),
        parameters_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        gradients_bytes=4 * trained,
        moments_bytes=8 * trained,
        # Parts of the states are joined to one tensor when all are there: for that moment they are there twice.
        peak_memory_bytes=max(before_steps + 2 * kept, after_steps + kept),
        gpu_peak_bytes=torch.cuda.max_memory_allocated(gpu) if gpu.type == "cuda" else None,
        gpu_total_bytes=torch.cuda.get_device_properties(gpu).total_memory if gpu.type == "cuda" else None,
        fill_seconds=states.seconds,
        validation_seconds=validation,
        stages=found,
        seconds=states.seconds + sum(stage.seconds for stage in found),
    )


@dataclass(frozen=True)
class _States:
    """What keeping the states of all inputs takes."""

    inputs: int
    image_tokens: float | None
    text_tokens: float | None
    bytes: int
    on_disk: bool
    seconds: float


class _Scratch:
    """A small training that leaves nothing behind."""

    def __init__(
        self,
        backbone: Backbone,
        cases: Sequence[EditCase],
        recipe: TrainingRecipe,
        processes: Processes,
        planned: int,
    ):
        self.backbone, self.recipe, self.processes, self.planned = backbone, recipe, processes, planned
        count = min(len(cases), max(SAMPLE, processes.count + 1))
        self.cases = [cases[place] for place in np.linspace(0, len(cases) - 1, count).astype(int)]
        self.modules: LiveEditModules = new_modules(backbone, recipe)
        self.task = self._task(self.cases)
        config = recipe.training.model_copy(update={"validation": 1, "stages": ()})
        self.trainer = Trainer(Path(), config, self.task, processes=processes)

    def _task(self, cases: Sequence[EditCase]) -> LiveEditTask:
        layer = self.recipe.editor.layer
        store = HiddenStateCache(self.backbone, layer)
        return LiveEditTask(self.backbone, layer, cases, self.recipe.losses, store, self.processes)

    def fill(self, known: Sequence[EditCase]) -> _States:
        """Keep the states of the sample; `known` are all the cases that there are."""
        items, store = self.task.items, self.task.store
        seconds = self._seconds(self.task.prepare) / len(items)
        if seconds * len(items) < _ENOUGH_SECONDS:  # The first run is slower, which shows where it is short.
            seconds = self._seconds(self._task(self.cases).prepare) / len(items)
        tokens: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for place, (question, _) in enumerate(items):
            kept = store.batch([place])
            tokens[question.image is not None].append((kept.ids.shape[1], int(kept.answer.sum())))
        has_image = [question.image is not None for question, _ in self._task(known).items]
        inputs, rows = 0, 0.0
        for kind, found in tokens.items():
            count = round(has_image.count(kind) * self.planned / len(known))
            inputs += count
            rows += count * statistics.mean(map(sum, found)) if found else 0
        means = [statistics.mean(length for length, _ in found) if found else None for found in tokens.values()]
        size = round(rows * self.backbone.width * _STATE_BYTES)
        on_disk = store.estimated_bytes(inputs) > IN_MEMORY_BYTES
        return _States(inputs, means[0], means[1], size, on_disk, inputs * seconds)

    def batch(self, stage: StageConfig) -> int:
        """Edits per step."""
        return min(stage.batch, self.planned - self.recipe.training.validation)

    def step_seconds(self, stage: StageConfig) -> float:
        """Seconds of one step with as many edits as the training would take, of which most are repeated."""
        optimizer = self.trainer.optimizer(self.modules, stage)
        size = self.batch(stage)
        chosen = [place % len(self.cases) for place in range(size)]

        def step() -> None:
            rng = np.random.default_rng(self.recipe.training.seed)
            self.trainer.train_on(chosen, self.modules, optimizer, stage, rng)

        step()  # The first one is slower.
        found: list[float] = []
        while len(found) < _STEPS and self._go_on(sum(found)):
            found.append(self._seconds(step))
        return statistics.median(found)

    def validation_seconds(self) -> float:
        """Seconds of one validation of the training."""
        seconds = self._seconds(lambda: self.trainer.validate(self.modules, range(len(self.cases))))
        return seconds * self.recipe.training.validation / len(self.cases)

    def _go_on(self, spent: float) -> bool:
        return self.processes.from_first(spent < _ENOUGH_SECONDS)  # All processes take as many steps.

    def _seconds(self, call: Callable[[], object]) -> float:
        device = self.backbone.layer_device(self.recipe.editor.layer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started


def _stage_estimate(
    stage: StageConfig, batch: int, step_seconds: float, validation_seconds: float, config: TrainingConfig
) -> StageEstimate:
    validations = math.ceil(stage.steps / config.validate_every)
    seconds = stage.steps * step_seconds + validations * validation_seconds
    return StageEstimate(stage.name, stage.steps, batch, step_seconds, validations, seconds)


def _peak_bytes() -> int:
    """The most that this process has held in main memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
