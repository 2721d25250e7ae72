"""Trains any editor that needs training: stages, checkpoints, validation, early stop, learning curves.

Several processes take the same steps as one: see `distributed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..backbones.precision import mixed_precision
from ..errors import CheckpointError, ConfigError
from ..files import write_json
from ..progress import TaskProgress, no_task_progress
from .checkpoints import load_tensors, resume_training, save_tensors, save_training
from .distributed import ALONE, Processes

USUAL_VALIDATION = 256
"""Cases kept for validation by default, if there are at least four times as many."""


class StageConfig(BaseModel):
    """One stage of a training: warm-up and decay of the learning rate, with the optimiser started afresh."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="The loss that this stage minimises; each editor has its own names.")
    steps: int = Field(ge=0, description="Optimiser steps; 0 skips the stage.")
    batch: int = Field(gt=0, description="Edits per step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW, reached after the warm-up.")


class TrainingConfig(BaseModel):
    """The schedule of a training; the losses are the editor's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[StageConfig, ...] = Field(description="Stages, in order.")
    seed: int = Field(default=0, ge=0, description="Seed of weights and batches.")
    warmup: int = Field(default=50, ge=0, description="Steps of linear warm-up in each stage.")
    decay: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up: a cosine down to 3 % of the peak, or constant."
    )
    beta2: float = Field(default=0.98, gt=0, lt=1, description="Decay of the second moments of AdamW.")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW; 0 makes it Adam.")
    clip: float | None = Field(default=1.0, gt=0, description="Gradients are clipped to this norm; None: never.")
    validation: int = Field(default=USUAL_VALIDATION, ge=1, description="Cases kept for validation: the last ones.")
    validate_every: int = Field(default=200, gt=0, description="Steps between validations.")
    patience: int = Field(
        default=6, gt=0, description="Validations without improvement after which a stage ends early."
    )
    keep: Literal["validation", "loss"] = Field(
        default="validation",
        description="Weights that are kept: those with the best mean of the validation figures, or with the lowest "
        "mean loss since the validation before.",
    )
    mixed_precision: bool = Field(
        default=True,
        description="Matrix products in bfloat16, sums in float32. In float32 alone where bfloat16 is slow: "
        "on processors without AVX-512.",
    )


class Task(Protocol):
    """The training task of an editor: its cases, its losses and its validation.

    With several processes, each has a task of its own and calls all methods in the same order.
    """

    @property
    def cases(self) -> Sequence[Any]:
        """All cases; the last ones are kept for validation."""
        ...

    def loss(
        self, modules: Any, stage: Any, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a stage on these cases, and figures.

        With several processes all get the same cases and the same `rng`; the loss is the mean of what they return.
        """
        ...

    def validate(self, modules: Any, chosen: Sequence[int]) -> dict[str, float]:
        """Return validation figures in percent, larger is better. Their mean selects the weights that are kept, unless
        `TrainingConfig.keep` says otherwise."""
        ...


@dataclass
class Curves:
    """Learning curves: figures by stage and step."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, stage: str, step: int, kind: str, figures: dict[str, float]) -> None:
        """Add figures of a kind, "train" or "validation", after a step."""
        self.steps.append({"stage": stage, "step": step, "kind": kind, **figures})

    def save(self, file: Path) -> None:
        """Write them as JSON."""
        write_json(file, self.steps)


class Trainer:
    """Runs the stages of a training in a folder; a later run with the same settings resumes an interrupted one.

    A step depends only on the weights and on its number, so that an interrupted training ends with the same weights.
    The best weights of the last stage are kept, by `TrainingConfig.keep`. All processes choose the same cases and
    average their gradients, and therefore hold the same weights; the first of them writes and reports. A resumed
    training may have another number of processes.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        task: Task,
        report: TaskProgress = no_task_progress,
        processes: Processes = ALONE,
    ):
        self.folder, self.config, self.task, self.processes = folder, config, task, processes
        self.report: TaskProgress = report if processes.is_first else no_task_progress
        count = len(task.cases)
        check_cases(count, config, processes)
        self.training = np.arange(count - config.validation)
        self.held_out = list(range(count - config.validation, count))
        self.curves = Curves()

    def run(self, modules: nn.Module) -> dict[str, float]:
        """Train the modules in place; return the validation figures of the weights that are kept."""
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
        figures: dict[str, float] = {}
        for index, stage in enumerate(self.config.stages):
            if stage.steps:
                figures = self._run_stage(modules, index, stage)
        return figures

    def _run_stage(self, modules: nn.Module, index: int, stage: StageConfig) -> dict[str, float]:
        optimizer = self.optimizer(modules, stage)
        checkpoint = self.folder / f"{index}-{stage.name}.safetensors"
        best_file = self.folder / f"{index}-{stage.name}-best.safetensors"
        self.processes.wait()  # The first process may still be writing the stage before.
        first, best, waited = self._resume(checkpoint, stage, modules, optimizer)
        recent: list[float] = []  # Losses since the last checkpoint.
        for step in range(first, stage.steps):
            if waited >= self.config.patience:
                break
            figures = self._step(modules, optimizer, index, stage, step)
            recent.append(figures["loss_nats"])
            self.report(stage.name, step + 1, stage.steps, figures)
            if (step + 1) % 10 == 0:
                self.curves.add(stage.name, step + 1, "train", figures)
            if (step + 1) % self.config.validate_every and step + 1 < stage.steps:
                continue
            found = self.validate(modules, self.held_out)
            score, recent = self._score(found, recent), []
            self.curves.add(stage.name, step + 1, "validation", found)
            self.report(f"{stage.name} validation", step + 1, stage.steps, found)
            waited = 0 if score > best else waited + 1
            improved = score >= best  # Of equal scores the later weights are kept: they were trained longer.
            best = score if improved else best
            if not self.processes.is_first:
                continue
            if improved:
                save_tensors(best_file, dict(modules.state_dict()), found)
            note = {"config": self._note(stage), "best": best, "waited": waited, "curves": self.curves.steps}
            save_training(checkpoint, modules, optimizer, step + 1, note)
            self.curves.save(self.folder / "curves.json")
        self.processes.wait()
        weights, kept = load_tensors(best_file)
        modules.load_state_dict(weights)
        return kept

    def optimizer(self, modules: nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
        """A new optimiser of the parameters that require gradients."""
        trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        betas = (0.9, self.config.beta2)
        return torch.optim.AdamW(trained, lr=stage.learning_rate, betas=betas, weight_decay=self.config.weight_decay)

    def _score(self, found: Mapping[str, float], recent: Sequence[float]) -> float:
        """By what weights are compared, larger is better. found: validation figures. recent: losses of late steps."""
        compared, sign = (recent, -1) if self.config.keep == "loss" else (found.values(), 1)
        return sign * sum(compared) / max(1, len(compared))

    def _step(
        self, modules: nn.Module, optimizer: torch.optim.Optimizer, index: int, stage: StageConfig, step: int
    ) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * self._rate_factor(step, stage.steps)
        rng = np.random.default_rng([self.config.seed, index, step])
        chosen = rng.choice(self.training, min(stage.batch, len(self.training)), replace=False).tolist()
        return self.train_on(chosen, modules, optimizer, stage, rng)

    def train_on(
        self,
        chosen: Sequence[int],
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
        stage: StageConfig,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """Take one optimiser step on these cases, which are the same for all processes; return its figures."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with self._precision(modules):
            loss, figures = self.task.loss(modules, stage.name, chosen, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, math.inf if self.config.clip is None else self.config.clip)
        optimizer.step()
        figures = self.processes.mean({"loss_nats": loss.item(), **figures})
        return {"loss_nats": figures.pop("loss_nats"), "gradient_norm": float(norm), **figures}

    def validate(self, modules: nn.Module, chosen: Sequence[int]) -> dict[str, float]:
        """Validation figures of these cases, the same for all processes."""
        modules.eval()
        with self._precision(modules):
            found = self.task.validate(modules, chosen)
        return self.processes.from_first(found)  # All processes must stop at the same step, whatever their rounding.

    def _resume(
        self, checkpoint: Path, stage: StageConfig, modules: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float, int]:
        resumed = resume_training(checkpoint, modules, optimizer)
        if resumed is None:
            return 0, float("-inf"), 0
        step, note = resumed
        if note["config"] != self._note(stage):
            raise CheckpointError(
                f"{checkpoint} was made with other settings ({note['config']}). Remove it, choose another folder, or "
                "give the settings it was made with."
            )
        self.curves = Curves(note["curves"])
        return step, note["best"], note["waited"]

    def _note(self, stage: StageConfig) -> dict[str, Any]:
        general = self.config.model_dump(exclude={"stages"}, mode="json")
        return {**general, "stage": stage.model_dump(mode="json")}

    def _rate_factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate: linear warm-up, then by `TrainingConfig.decay`."""
        if step < self.config.warmup:
            return (step + 1) / self.config.warmup
        if self.config.decay == "constant":
            return 1.0
        progress = (step - self.config.warmup) / max(1, steps - self.config.warmup)
        return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))

    def _precision(self, modules: nn.Module) -> torch.autocast:
        return mixed_precision(next(modules.parameters()).device.type, self.config.mixed_precision)


def check_cases(count: int, config: TrainingConfig, processes: Processes = ALONE) -> None:
    """Raise `ConfigError` if there are too few cases to train and validate on, or for each process to have one."""
    if count <= config.validation:
        raise ConfigError(
            f"{count} cases were given and {config.validation} are kept for validation. Give more cases or keep fewer."
        )
    for stage in config.stages:
        batch = min(stage.batch, count - config.validation)
        if stage.steps and batch < processes.count:
            raise ConfigError(
                f"Stage {stage.name} takes {batch} edits a step and there are {processes.count} processes. Each needs "
                "at least one: give a larger batch, more cases, or fewer processes."
            )


def usual_validation(cases: int) -> int:
    """The number of cases kept for validation by default: `USUAL_VALIDATION`, or a quarter of few cases."""
    return min(USUAL_VALIDATION, max(1, cases // 4))
