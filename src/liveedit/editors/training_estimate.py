"""Estimates what a training takes, from a few cases and a few steps, before anything long is started."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch

from ..backbones import Backbone
from ..backbones.hidden_states import IN_MEMORY_BYTES, HiddenStateCache, Item
from ..progress import TaskProgress, no_task_progress
from ..samples import GENERALITY, EditCase, Probe
from ..training.distributed import ALONE, Processes
from ..training.trainer import StageConfig, Trainer, TrainingConfig, check_cases
from .trained import TrainingSetup, untrained_modules

SAMPLE: Final = 8
"""Number of cases that an estimate is made from."""

_MAX_STEPS, _MAX_SECONDS = 3, 5.0
"""Number of steps that are timed, and the time after which no further step is."""

_STATE_BYTES: Final = 2
"""Hidden states are kept as bfloat16."""


@runtime_checkable
class CachedTask(Protocol):
    """A training task that keeps the hidden states of its inputs. Of other tasks only times are estimated."""

    items: list[Item]
    """All inputs: questions with answers."""
    store: HiddenStateCache
    """The hidden states of `items`."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage: `steps` of `batch` edits at `seconds_per_step`; `seconds` includes its `validations`."""

    name: str
    steps: int
    batch: int
    seconds_per_step: float
    validations: int
    seconds: float


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training takes on this machine, with the number of processes that made the estimate.

    Memory is that of one process. Early stopping is not considered: it may shorten the stages.
    """

    processes: int
    device: str
    cases: int
    validation_cases: int
    inputs: int
    tokens_per_image_input: float | None
    tokens_per_text_input: float | None
    states_bytes: int
    """Hidden states of all inputs, bfloat16; each process keeps all of them."""
    states_on_disk: bool
    """Whether they go to a file in the output folder rather than to memory."""
    backbone_bytes: int
    parameters: int
    parameters_bytes: int
    gradients_bytes: int
    moments_bytes: int
    """The two moments of AdamW, float32."""
    peak_memory_bytes: int
    """Of the process in main memory, including hidden states that are kept there."""
    gpu_peak_bytes: int | None
    gpu_total_bytes: int | None
    fill_seconds: float
    """Preparing the task, which is mainly computing hidden states."""
    validation_seconds: float
    """One validation."""
    stages: tuple[StageEstimate, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate_training(
    setup: TrainingSetup,
    backbone: Backbone,
    cases: Sequence[EditCase],
    processes: Processes = ALONE,
    planned: int | None = None,
    report: TaskProgress = no_task_progress,
) -> TrainingEstimate:
    """Run some cases through the backbone and take some steps of every stage with modules that are discarded.

    Nothing remains on disk. planned: the number of cases of the training, if `cases` are only a sample of them.
    LiveEdit's joint stage is timed with an untrained router, which sends more inputs through the backbone's last
    layers than a trained one.

    Raises what the training would raise for cases, settings and images that do not fit.
    """
    planned = planned or len(cases)
    check_cases(planned, setup.training, processes)
    with TemporaryDirectory(prefix="liveedit-estimate-") as folder:
        sample = _Sample(setup, backbone, cases, processes, planned, Path(folder))
        states = sample.prepare(cases)
        before_steps = _peak_bytes()
        stages = [stage for stage in setup.training.stages if stage.steps]
        step_seconds: list[float] = []
        for done, stage in enumerate(stages):
            report("dry run: a step of each stage", done, len(stages))
            step_seconds.append(sample.step_seconds(stage))
        report("dry run: a step of each stage", len(stages), len(stages))
        validation = sample.validation_seconds()
    after_steps = _peak_bytes()
    found = tuple(
        _stage_estimate(stage, sample.batch(stage), seconds, validation, setup.training)
        for stage, seconds in zip(stages, step_seconds, strict=True)
    )
    kept = 0 if states.on_disk else states.bytes
    gpu = sample.device
    return TrainingEstimate(
        processes=processes.count,
        device=_device_name(gpu),
        cases=planned,
        validation_cases=setup.training.validation,
        inputs=states.inputs,
        tokens_per_image_input=states.image_tokens,
        tokens_per_text_input=states.text_tokens,
        states_bytes=states.bytes,
        states_on_disk=states.on_disk,
        backbone_bytes=sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters()),
        **_parameter_sizes(sample.modules),
        # The parts of the hidden states are concatenated once all are computed: for that moment they exist twice.
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
    """The inputs of all planned cases and their hidden states. seconds: to prepare the task."""

    inputs: int
    image_tokens: float | None
    text_tokens: float | None
    bytes: int
    on_disk: bool
    seconds: float


class _Sample:
    """A training on a sample of the cases, which leaves no files."""

    def __init__(
        self,
        setup: TrainingSetup,
        backbone: Backbone,
        cases: Sequence[EditCase],
        processes: Processes,
        planned: int,
        folder: Path,
    ):
        self.setup, self.backbone, self.processes, self.planned = setup, backbone, processes, planned
        self.folder = folder
        count = min(len(cases), max(SAMPLE, processes.count + 1))
        self.cases = [cases[place] for place in np.linspace(0, len(cases) - 1, count).astype(int)]
        self.modules = untrained_modules(setup, backbone)
        self.device: torch.device = next(self.modules.parameters()).device

    def prepare(self, known: Sequence[EditCase]) -> _States:
        """Make the task of the sample. known: all cases that exist, of which there may be fewer than planned."""
        seconds = self._seconds(self._make_task)
        if seconds < _MAX_SECONDS:  # The first run is slower, which matters if it is short.
            seconds = self._seconds(self._make_task)
        config = self.setup.training.model_copy(update={"validation": 1, "stages": ()})
        self.trainer = Trainer(self.folder, config, self.task, processes=self.processes)
        inputs = dict.fromkeys((True, False), 0)
        means: dict[bool, float | None] = dict.fromkeys(inputs)
        rows, sampled, store = 0.0, 0, None
        if isinstance(self.task, CachedTask):
            store, sampled = self.task.store, len(self.task.items)
            for kind in inputs:
                lengths = [_lengths(store, place) for place in self._places(self.task.items, kind)]
                scale = _inputs_of(known, kind) / max(1, _inputs_of(self.cases, kind)) * self.planned / len(known)
                inputs[kind] = round(len(lengths) * scale)
                if lengths:
                    means[kind] = statistics.mean(length for length, _ in lengths)
                    rows += inputs[kind] * statistics.mean(map(sum, lengths))
        total = sum(inputs.values())
        return _States(
            total,
            means[True],
            means[False],
            round(rows * self.backbone.width * _STATE_BYTES),
            store is not None and store.estimated_bytes(total) > IN_MEMORY_BYTES,
            seconds * (total / sampled if sampled else self.planned / len(self.cases)),
        )

    def batch(self, stage: StageConfig) -> int:
        """Edits per step."""
        return min(stage.batch, self.planned - self.setup.training.validation)

    def step_seconds(self, stage: StageConfig) -> float:
        """Seconds of one step with the training's number of edits, in which the cases of the sample repeat."""
        optimizer = self.trainer.optimizer(self.modules, stage)
        size = self.batch(stage)
        chosen = [place % len(self.cases) for place in range(size)]

        def step() -> None:
            rng = np.random.default_rng(self.setup.training.seed)
            self.trainer.train_on(chosen, self.modules, optimizer, stage, rng)

        step()  # The first one is slower.
        found: list[float] = []
        while len(found) < _MAX_STEPS and self._continue(sum(found)):
            found.append(self._seconds(step))
        return statistics.median(found)

    def validation_seconds(self) -> float:
        """Seconds of one validation of the training."""
        seconds = self._seconds(lambda: self.trainer.validate(self.modules, range(len(self.cases))))
        return seconds * self.setup.training.validation / len(self.cases)

    def _make_task(self) -> None:
        setup = self.setup
        parts = (self.cases, self.folder, no_task_progress, self.processes, setup.options)
        self.task = setup.kind.make_task(self.backbone, setup.config, *parts)

    def _places(self, items: Sequence[Item], with_image: bool) -> list[int]:
        return [place for place, (question, _) in enumerate(items) if (question.image is not None) == with_image]

    def _continue(self, spent: float) -> bool:
        return self.processes.from_first(spent < _MAX_SECONDS)  # All processes take the same number of steps.

    def _seconds(self, call: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def _lengths(store: HiddenStateCache, place: int) -> tuple[int, int]:
    """The tokens of an input, and its answer tokens, for which a second hidden state is kept."""
    kept = store.batch([place])
    return kept.input_ids.shape[1], int(kept.answer_mask.sum())


def _inputs_of(cases: Sequence[EditCase], with_image: bool) -> int:
    """The number of questions with, or without, an image in these cases, the edits' own included."""
    questions = [probe.question for case in cases for probe in (case.reliability, *case.probes) if _is_answered(probe)]
    return sum((question.image is not None) == with_image for question in questions)


def _is_answered(probe: Probe) -> bool:
    """Generality probes have the edit's answer; a locality probe without one is not trained on."""
    return probe.name in GENERALITY or bool(probe.answer and probe.answer.strip())


def _parameter_sizes(modules: torch.nn.Module) -> dict[str, int]:
    parameters = list(modules.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "parameters_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "gradients_bytes": 4 * trained,
        "moments_bytes": 8 * trained,
    }


def _stage_estimate(
    stage: StageConfig, batch: int, step_seconds: float, validation_seconds: float, config: TrainingConfig
) -> StageEstimate:
    validations = math.ceil(stage.steps / config.validate_every)
    seconds = stage.steps * step_seconds + validations * validation_seconds
    return StageEstimate(stage.name, stage.steps, batch, step_seconds, validations, seconds)


def _peak_bytes() -> int:
    """The peak of this process's main memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
