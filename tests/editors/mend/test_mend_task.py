"""The training loss: batches, processes, what is gathered, and what is validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_processes import simulate
from torch import Tensor
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.editors.mend import Mend, MendConfig
from liveedit.editors.mend.modules import MendModules
from liveedit.editors.mend.task import MendTask
from liveedit.editors.trained import TrainingSetup, train_editor
from liveedit.samples import LOCALITY, EditCase
from liveedit.training.distributed import ALONE, Processes
from liveedit.training.trainer import StageConfig, TrainingConfig

BATCH = [4, 0, 7, 2, 9]
TaskMaker = Callable[..., MendTask]


@pytest.fixture
def config() -> MendConfig:
    return MendConfig.model_validate(
        {"layers": 2, "rank": 8, "edit_rate": 0.01, "statistics_cases": 5, "locality_inputs": 5}
    )


@pytest.fixture
def task_of(random_backbone: Backbone, train_cases: tuple[EditCase, ...], config: MendConfig) -> Iterator[TaskMaker]:
    """A task on kept states that all tasks of a test share."""
    store = HiddenStateCache(random_backbone, 3)
    MendTask(random_backbone, config, train_cases, store).prepare()
    yield lambda processes=ALONE: MendTask(random_backbone, config, train_cases, store, processes)


@pytest.fixture
def modules(random_backbone: Backbone, config: MendConfig, task_of: TaskMaker) -> MendModules:
    """Networks away from their start, with statistics."""
    torch.manual_seed(0)
    made = Mend.new_modules(random_backbone, config)
    task_of().loss(made, "edit", [0], np.random.default_rng(0))
    with torch.no_grad():
        for value in made.networks.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return made


def loss_of(task: MendTask, modules: MendModules, batch: list[int], seed: int = 1) -> Tensor:
    return task.loss(modules, "edit", batch, np.random.default_rng(seed))[0]


def gradients(modules: MendModules, loss: Tensor) -> dict[str, Tensor]:
    modules.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad.clone() for name, value in modules.named_parameters() if value.grad is not None}


def answers_one_by_one(task: MendTask, modules: MendModules, case: int, names: list[str]) -> list[Tensor]:
    """Logits of each probe of a case, with the case's own change written into the weights."""
    return answers_under(task, [change.dense()[0] for change in modules(task._gradients([case]))], case, names)


def answers_under(task: MendTask, changes: list[Tensor], case: int, names: list[str]) -> list[Tensor]:
    """Logits of each probe of a case, with these changes written into the weights."""
    backbone = task.backbone
    kept = [matrix.module.weight.clone() for matrix in task.matrices]
    found = []
    try:
        for matrix, change in zip(task.matrices, changes, strict=True):
            matrix.module.weight += change
        for name in names:
            batch = task.store.batch([task._places[case][name]])
            found.append(backbone.logits_from(batch.hidden_states, batch, 3, batch.predicting))
    finally:
        for matrix, weight in zip(task.matrices, kept, strict=True):
            matrix.module.weight.copy_(weight)
    return found


@torch.no_grad()
def test_a_batch_of_cases_answers_as_each_does_with_its_own_changed_weights(
    task_of: TaskMaker, modules: MendModules
) -> None:
    task = task_of()
    answers = task._edited(modules, [4, 0, 7])
    expected = torch.cat(
        [logits for case in (4, 0, 7) for logits in answers_one_by_one(task, modules, case, list(task._places[case]))]
    )
    torch.testing.assert_close(answers.logits, expected, rtol=1e-3, atol=1e-3)
    assert (answers.logits - task._base_logits(answers.batch.final)).abs().max() > 0.1


@torch.no_grad()
def test_edits_together_are_all_in_force_for_the_probes_of_each(task_of: TaskMaker, modules: MendModules) -> None:
    task = task_of()
    answers = task._edited(modules, [4, 0, 7], together=2)
    changes = [change.dense() for change in modules(task._gradients([4, 0, 7]))]
    active = {4: (0, 1), 0: (0, 1), 7: (2,)}
    expected = []
    for case, numbers in active.items():
        summed = [change[list(numbers)].sum(0) for change in changes]
        expected += answers_under(task, summed, case, list(task._places[case]))
    torch.testing.assert_close(answers.logits, torch.cat(expected), rtol=1e-3, atol=1e-3)


def test_the_loss_weighs_edit_generality_and_locality(task_of: TaskMaker, modules: MendModules) -> None:
    """Against the equation, from logits: 0.1 (NLL of edits + NLL of generality) + 1 KL(base || edited)."""
    task = task_of()
    with torch.no_grad():
        edit, general, local = [], [], []
        for case in BATCH:
            names = list(task._places[case])
            for name, logits in zip(names, answers_one_by_one(task, modules, case, names), strict=True):
                batch = task.store.batch([task._places[case][name]])
                if name.endswith("locality"):
                    base = task._base_logits(batch.final).softmax(-1).double()
                    local.append((base * (base.log() - logits.double().log_softmax(-1))).sum(-1))
                else:
                    nll = F.cross_entropy(logits.double(), batch.targets, reduction="none")
                    (edit if name == "reliability" else general).append(nll)
        expected = 0.1 * (torch.cat(edit).mean() + torch.cat(general).mean()) + torch.cat(local).mean()
        assert torch.cat(local).mean() > 0.01
        torch.testing.assert_close(loss_of(task, modules, BATCH).double(), expected, rtol=1e-3, atol=1e-4)


def test_cases_take_the_kinds_of_locality_in_turn(
    random_backbone: Backbone, train_cases: tuple[EditCase, ...], config: MendConfig
) -> None:
    few = config.model_copy(update={"locality_inputs": 2})
    task = MendTask(random_backbone, few, train_cases[:5], HiddenStateCache(random_backbone, 3))
    kinds = [[name for name in place if name in LOCALITY] for place in task._places]
    assert all(len(own) == 2 for own in kinds)
    assert Counter(name for own in kinds for name in own) == Counter(dict.fromkeys(LOCALITY, 2))
    assert len(task.items) == 5 * (3 + 2)


@pytest.mark.parametrize("count", [2, 3])
def test_the_mean_over_processes_is_the_loss_of_one(task_of: TaskMaker, modules: MendModules, count: int) -> None:
    alone = loss_of(task_of(), modules, BATCH)
    expected = gradients(modules, alone)

    def work(processes: Processes) -> Tensor:
        return loss_of(task_of(processes), modules, BATCH)

    together = torch.stack(simulate(count, work)).mean()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    found = gradients(modules, together)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_statistics_are_taken_once_of_the_first_cases(
    random_backbone: Backbone, config: MendConfig, task_of: TaskMaker
) -> None:
    task, modules = task_of(), Mend.new_modules(random_backbone, config)
    loss_of(task, modules, BATCH)
    left_pack = {name: value.clone() for name, value in modules.statistics.state_dict().items()}
    gradient = task._gradients(range(5))[0]
    values = torch.cat([gradient.inputs, gradient.outputs], -1)[gradient.kept]
    assert left_pack["0.count"] == len(values)
    torch.testing.assert_close(left_pack["0.mean"], values.mean(0), rtol=1e-3, atol=1e-6)
    loss_of(task, modules, [11, 3], seed=2)
    assert all(torch.equal(value, left_pack[name]) for name, value in modules.statistics.state_dict().items())


def test_validation_edits_one_at_a_time(task_of: TaskMaker, modules: MendModules) -> None:
    task = task_of()
    found = task.validate(modules, BATCH, group=3)
    with torch.no_grad():
        for name in ("reliability", "same_image_locality"):
            right = []
            for case in BATCH:
                batch = task.store.batch([task._places[case][name]])
                (logits,) = answers_one_by_one(task, modules, case, [name])
                local = name.endswith("locality")
                wanted = task._base_logits(batch.final).argmax(-1) if local else batch.targets
                counted = slice(None) if len(wanted) == 1 else slice(-1)  # Without the end of the sequence.
                right += (logits.argmax(-1) == wanted)[counted].tolist()
            assert found[name] == pytest.approx(100 * np.mean(right))
    assert {name for name in found if not name.endswith("locality")} == {
        "reliability",
        "text_generality",
        "modal_generality",
    }


def test_a_training_cut_off_goes_on_to_the_same_editor(
    random_backbone: Backbone, train_cases: tuple[EditCase, ...], config: MendConfig, tmp_path: Path
) -> None:
    training = TrainingConfig(
        stages=(StageConfig(name="edit", steps=4, batch=3, learning_rate=1e-3),),
        validation=2,
        validate_every=2,
        warmup=1,
    )

    def stop_after_three(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        if what == "edit" and done == 3:
            raise KeyboardInterrupt

    straight = train_editor(TrainingSetup(Mend, config, training), random_backbone, train_cases, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_editor(
            TrainingSetup(Mend, config, training), random_backbone, train_cases, tmp_path / "cut", stop_after_three
        )
    resumed = train_editor(TrainingSetup(Mend, config, training), random_backbone, train_cases, tmp_path / "cut")
    first, second = (Mend.from_pretrained(result.folder, random_backbone) for result in (straight, resumed))
    assert first.digest() == second.digest() != Mend.untrained(random_backbone, config).digest()
    assert straight.validation == resumed.validation
