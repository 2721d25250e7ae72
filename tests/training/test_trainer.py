"""The trainer on a task of four numbers: resuming, stopping early, keeping the best."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from liveedit.errors import CheckpointError, ConfigError
from liveedit.training.trainer import StageConfig, Trainer, TrainingConfig


class Slope(nn.Module):
    """Learns y = x @ weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)


class SlopeTask:
    """Cases are rows of x; a scripted list of validation figures where one is given."""

    def __init__(self, figures: Sequence[float] | None = None, stop_at: int | None = None):
        rng = np.random.default_rng(0)
        self.cases = list(rng.standard_normal((20, 4)))
        self.figures, self.stop_at = list(figures or []), stop_at
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.validated = 0

    def loss(
        self, modules: Any, stage: Any, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if self.stop_at == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append((stage, tuple(chosen)))
        x = torch.tensor(np.stack([self.cases[index] for index in chosen])).float()
        noise = float(rng.standard_normal())
        wanted = x @ torch.tensor([1.0, -2.0, 3.0, 0.5]) + 0.01 * noise
        return ((x @ modules.weight - wanted) ** 2).mean(), {"noise": noise}

    def validate(self, modules: Any, chosen: Sequence[int]) -> dict[str, float]:
        assert list(chosen) == [16, 17, 18, 19]
        self.validated += 1
        if self.figures:
            return {"score": self.figures[self.validated - 1]}
        return {"score": -float((modules.weight.detach() - torch.tensor([1.0, -2.0, 3.0, 0.5])).norm())}


def config_of(*stages: tuple[str, int], **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "stages": [StageConfig(name=name, steps=steps, batch=5, learning_rate=0.05) for name, steps in stages],
        "validation": 4,
        "validate_every": 5,
        "warmup": 3,
        "mixed_precision": False,
    }
    return TrainingConfig(**{**values, **changes})


def trained(folder: Path, config: TrainingConfig, task: SlopeTask) -> tuple[Slope, dict[str, float]]:
    modules = Slope()
    return modules, Trainer(folder, config, task).run(modules)


def test_a_training_that_was_cut_off_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = config_of(("first", 12), ("second", 18))
    whole, figures = trained(tmp_path / "whole", config, SlopeTask())
    assert whole.weight.abs().max() > 0.1
    for stop_at in (3, 9, 17):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "cut", config, SlopeTask(stop_at=stop_at))
    resumed, resumed_figures = trained(tmp_path / "cut", config, SlopeTask())
    assert torch.equal(whole.weight, resumed.weight)
    assert figures == resumed_figures
    curves = [json.loads((tmp_path / name / "curves.json").read_text()) for name in ("whole", "cut")]
    assert curves[0] == curves[1]
    assert [row["step"] for row in curves[0] if row["kind"] == "validation"] == [5, 10, 12, 5, 10, 15, 18]


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    config = config_of(("only", 10))
    whole, figures = trained(tmp_path, config, SlopeTask())
    task = SlopeTask(stop_at=0)
    again, same_figures = trained(tmp_path, config, task)
    assert task.asked == [] and task.validated == 0
    assert torch.equal(whole.weight, again.weight)
    assert figures == same_figures


def test_it_learns(tmp_path: Path) -> None:
    modules, _ = trained(tmp_path, config_of(("only", 300), validate_every=100), SlopeTask())
    assert modules.weight.tolist() == pytest.approx([1.0, -2.0, 3.0, 0.5], abs=0.3)
    assert modules.fixed.item() == 1.0


def test_held_out_cases_are_never_trained_on(tmp_path: Path) -> None:
    task = SlopeTask()
    trained(tmp_path, config_of(("first", 20), ("second", 5)), task)
    seen = {index for _, chosen in task.asked for index in chosen}
    assert seen == set(range(16))
    assert all(len(set(chosen)) == 5 for _, chosen in task.asked)
    assert [stage for stage, _ in task.asked] == ["first"] * 20 + ["second"] * 5


def test_a_stage_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    task = SlopeTask(figures=[50.0, 60.0, 60.0, 55.0, 70.0])
    _, figures = trained(tmp_path, config_of(("only", 100), patience=2), task)
    assert len(task.asked) == 20  # The best came after 10 steps; two validations of 5 steps were waited.
    assert task.validated == 4
    assert figures == {"score": 60.0}


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    config = config_of(("only", 20), patience=9)
    best, figures = trained(tmp_path / "best", config, SlopeTask(figures=[10.0, 90.0, 80.0, 20.0]))
    assert figures == {"score": 90.0}
    # The weights after ten steps: those of a training whose last two validations were never better.
    first_ten, _ = trained(tmp_path / "same", config, SlopeTask(figures=[10.0, 20.0, 0.0, 0.0]))
    last, _ = trained(tmp_path / "last", config, SlopeTask(figures=[10.0, 20.0, 30.0, 40.0]))
    assert torch.equal(best.weight, first_ten.weight)
    assert not torch.equal(best.weight, last.weight)


class ScriptedLosses(SlopeTask):
    """Its loss has a given value for every five steps; its gradients are those of the slope."""

    def __init__(self, values: Sequence[float], figures: Sequence[float]):
        super().__init__(figures)
        self.values = values

    def loss(
        self, modules: Any, stage: Any, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        loss, figures = super().loss(modules, stage, chosen, rng)
        return loss + (self.values[(len(self.asked) - 1) // 5] - loss).detach(), figures


def test_the_weights_of_the_lowest_loss_are_kept_if_asked(tmp_path: Path) -> None:
    config = config_of(("only", 20), keep="loss", patience=9)
    kept, figures = trained(tmp_path / "kept", config, ScriptedLosses([9.0, 2.0, 3.0, 4.0], [50.0, 10.0, 70.0, 90.0]))
    assert figures == {"score": 10.0}
    same, _ = trained(tmp_path / "same", config_of(("only", 20), patience=9), SlopeTask([50.0, 60.0, 0.0, 0.0]))
    assert torch.equal(kept.weight, same.weight)  # Those after ten steps.


def test_a_stage_ends_when_its_loss_stops_falling_if_that_is_compared(tmp_path: Path) -> None:
    task = ScriptedLosses([2.0, 1.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
    trained(tmp_path, config_of(("only", 100), keep="loss", patience=2), task)
    assert len(task.asked) == 20  # The lowest loss came before step 10; two checkpoints of 5 steps were waited.


def test_without_decay_warm_up_and_clipping_it_is_plain_adam(tmp_path: Path) -> None:
    changes = {"weight_decay": 0.0, "beta2": 0.999, "warmup": 0, "decay": "constant", "clip": None}
    found, _ = trained(tmp_path, config_of(("only", 15), validate_every=15, **changes), SlopeTask())
    task, slope = SlopeTask(), Slope()
    optimizer = torch.optim.Adam([slope.weight], lr=0.05)
    for step in range(15):
        rng = np.random.default_rng([0, 0, step])
        loss, _ = task.loss(slope, "only", rng.choice(np.arange(16), 5, replace=False).tolist(), rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(found.weight, slope.weight)


def test_a_stage_goes_on_from_the_best_weights_of_the_one_before(tmp_path: Path) -> None:
    class Watching(SlopeTask):
        def loss(
            self, modules: Any, stage: Any, chosen: Sequence[int], rng: np.random.Generator
        ) -> tuple[Tensor, dict[str, float]]:
            if stage == "second" and not any(name == "second" for name, _ in self.asked):
                self.start = modules.weight.detach().clone()
            return super().loss(modules, stage, chosen, rng)

    task = Watching(figures=[90.0, 10.0, 50.0])
    trained(tmp_path / "both", config_of(("first", 10), ("second", 5)), task)
    kept, _ = trained(tmp_path / "one", config_of(("first", 10)), SlopeTask(figures=[90.0, 10.0]))
    assert torch.equal(task.start, kept.weight)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"warmup": 4}, {"validation": 4, "clip": 0.5}])
def test_a_folder_of_another_training_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained(tmp_path, config_of(("only", 5)), SlopeTask())
    with pytest.raises(CheckpointError, match="made with other settings"):
        trained(tmp_path, config_of(("only", 5), **changes), SlopeTask())


def test_a_stage_with_another_rate_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, config_of(("only", 5)), SlopeTask())
    other = config_of(("only", 5)).model_copy(
        update={"stages": (StageConfig(name="only", steps=5, batch=5, learning_rate=0.1),)}
    )
    with pytest.raises(CheckpointError, match="made with other settings"):
        trained(tmp_path, other, SlopeTask())


def test_two_stages_may_have_one_name(tmp_path: Path) -> None:
    config = config_of(("joint", 5), ("joint", 10), ("a-joint", 5))
    first, _ = trained(tmp_path, config, SlopeTask())
    again, _ = trained(tmp_path, config, SlopeTask(stop_at=0))
    assert torch.equal(first.weight, again.weight)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    trained(tmp_path, config_of(("only", 5)), SlopeTask())
    (tmp_path / "0-only.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="could not be read"):
        trained(tmp_path, config_of(("only", 5)), SlopeTask())


def test_a_stage_of_no_steps_changes_nothing(tmp_path: Path) -> None:
    modules, figures = trained(tmp_path, config_of(("only", 0)), SlopeTask())
    assert not modules.weight.any()
    assert figures == {}
    before, kept = trained(tmp_path / "one", config_of(("first", 5)), SlopeTask())
    after, found = trained(tmp_path / "two", config_of(("first", 5), ("last", 0)), SlopeTask())
    assert torch.equal(before.weight, after.weight)
    assert found == kept != {}


def test_too_few_cases_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="20 cases were given and 20 are kept"):
        Trainer(tmp_path, config_of(("only", 5), validation=20), SlopeTask())


def test_the_rate_warms_up_and_falls(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, config_of(("only", 100), warmup=10), SlopeTask())
    factors = [trainer._rate_factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert 0.03 < factors[-1] < 0.04
