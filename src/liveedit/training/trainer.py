"""Trains any editor that needs training: stages, checkpoints, validation, early stop, learning curves.

Several processes take the same steps as one: see `processes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .checkpoints import load_tensors, resume_training, save_tensors, save_training
from .distributed import ALONE, Processes

Report = Callable[[str, int, int, dict[str, float]], None]
"""Called with stage, step, steps of the stage, and figures."""


class StageConfig(BaseModel):
    """One stage of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Which loss of the editor is trained.")
    steps: int = Field(ge=0, description="Optimiser steps.")
    batch: int = Field(gt=0, description="Edits per step.")
    rate: float = Field(gt=0, description="Peak learning rate.")


class TrainingConfig(BaseModel):
    """How an editor is trained, apart from its losses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[StageConfig, ...] = Field(description="Stages, one after the other.")
    seed: int = Field(default=0, ge=0, description="Seed of weights and batches.")
    warmup: int = Field(default=50, ge=0, description="Steps of linear warm-up in each stage.")
    clip: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    validation: int = Field(default=256, ge=1, description="Cases kept for validation: the last ones.")
    validate_every: int = Field(default=200, gt=0, description="Steps between validations.")
    patience: int = Field(default=6, gt=0, description="Validations without a better figure before a stage ends early.")
    mixed_precision: bool = Field(default=True, description="bfloat16 products, float32 sums.")


class Task(Protocol):
    """What an editor brings to its training. Under several processes it knows them, and each calls all of this."""

    @property
    def cases(self) -> Sequence[Any]:
        """What is trained on, the last of them kept for validation."""
        ...

    def loss(
        self, modules: Any, stage: Any, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a stage on these cases, and figures.

        Under several processes all get the same cases and numbers; what counts is the mean of what they return.
        """
        ...

    def validate(self, modules: Any, chosen: Sequence[int]) -> dict[str, float]:
        """Validation figures in percent, larger is better; their mean decides."""
        ...


@dataclass
class Curves:
    """Learning curves: figures by stage and step."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, stage: str, step: int, kind: str, figures: dict[str, float]) -> None:
        """Note figures ("train" or "validation") after a step."""
        self.steps.append({"stage": stage, "step": step, "kind": kind, **figures})

    def save(self, file: Path) -> None:
        """Write them as JSON."""
        file.write_text(json.dumps(self.steps, indent=1) + "\n", encoding="utf-8")


class Trainer:
    """Runs the stages of a training in a folder; a later run with the same settings goes on where it was cut off.

    A step depends on the weights and its number alone, so that an interrupted training ends with the same weights.
    The best validated weights of the last stage are what is returned. Processes choose the same cases, average their
    gradients, and so hold the same weights; the first of them writes and reports. The number of processes is no
    setting of a training: another number may go on with it.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        task: Task,
        report: Report = lambda *_: None,
        processes: Processes = ALONE,
    ):
        self.folder, self.config, self.task, self.processes = folder, config, task, processes
        self.report: Report = report if processes.is_first else lambda *_: None
        count = len(task.cases)
        check_cases(count, config, processes)
        self.training = np.arange(count - config.validation)
        self.held_out = list(range(count - config.validation, count))
        self.curves = Curves()

    def run(self, modules: nn.Module) -> dict[str, float]:
        """Train in place; returns the validation figures of the weights that are kept."""
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
        for step in range(first, stage.steps):
            if waited >= self.config.patience:
                break
            figures = self._step(modules, optimizer, index, stage, step)
            self.report(stage.name, step + 1, stage.steps, figures)
            if (step + 1) % 10 == 0:
                self.curves.add(stage.name, step + 1, "train", figures)
            if (step + 1) % self.config.validate_every and step + 1 < stage.steps:
                continue
            found = self.validate(modules, self.held_out)
            score = sum(found.values()) / max(1, len(found))
            self.curves.add(stage.name, step + 1, "validation", found)
            self.report(f"{stage.name} validation", step + 1, stage.steps, found)
            waited = 0 if score > best else waited + 1
            improved = score >= best  # Of equals the later: it was trained longer.
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
        """A new optimiser of what is trained."""
        trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def _step(
        self, modules: nn.Module, optimizer: torch.optim.Optimizer, index: int, stage: StageConfig, step: int
    ) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * self._rate_factor(step, stage.steps)
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
        """One optimiser step on these cases, chosen alike by all processes; returns its figures."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with self._precision(modules):
            loss, figures = self.task.loss(modules, stage.name, chosen, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, self.config.clip)
        optimizer.step()
        figures = self.processes.mean({"loss_nats": loss.item(), **figures})
        return {"loss_nats": figures.pop("loss_nats"), "gradient_norm": float(norm), **figures}

    def validate(self, modules: nn.Module, chosen: Sequence[int]) -> dict[str, float]:
        """Validation figures of these cases, the same for all processes."""
        modules.eval()
        with self._precision(modules):
            found = self.task.validate(modules, chosen)
        return self.processes.from_first(found)  # Whether to stop must not hang on a last bit.

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
        """Linear warm-up, then a cosine to 3 %."""
        if step < self.config.warmup:
            return (step + 1) / self.config.warmup
        progress = (step - self.config.warmup) / max(1, steps - self.config.warmup)
        return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))

    def _precision(self, modules: nn.Module) -> torch.autocast:
        device = next(modules.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.mixed_precision)


def check_cases(count: int, config: TrainingConfig, processes: Processes = ALONE) -> None:
    """Raise `ConfigError` where so many cases are too few to train and validate on, or to give each process some."""
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
