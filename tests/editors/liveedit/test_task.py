"""The losses of a training: several processes, each with its share, against one with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated_processes import simulate
from torch import Tensor
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.editors.liveedit import LiveEditConfig, LiveEditLosses
from liveedit.editors.liveedit import losses as losses_module
from liveedit.editors.liveedit import task as task_module
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.task import LiveEditTask, Stage
from liveedit.editors.shared.routing import QueryFeatures, changed_tokens, expert_residual
from liveedit.experts import ExpertRepository
from liveedit.samples import EditCase
from liveedit.training.distributed import ALONE, Processes

BATCH = [4, 0, 7, 2, 9, 5, 1]
"""Shared out over two and over three processes with one left over."""

ConfigMaker = Callable[..., LiveEditConfig]
TaskMaker = Callable[..., LiveEditTask]


@pytest.fixture
def task_of(random_backbone: Backbone, train_cases: tuple[EditCase, ...], small_config: ConfigMaker) -> TaskMaker:
    """A task on kept states that all tasks of a test share."""
    layer = small_config().layer
    store = HiddenStateCache(random_backbone, layer)
    LiveEditTask(random_backbone, layer, train_cases, LiveEditLosses(), store).prepare()

    def make(losses: LiveEditLosses, processes: Processes = ALONE) -> LiveEditTask:
        return LiveEditTask(random_backbone, layer, train_cases, losses, store, processes)

    return make


def gradients(modules: LiveEditModules, loss: Tensor) -> dict[str, Tensor]:
    modules.zero_grad(set_to_none=True)
    loss.backward()
    return {name: value.grad for name, value in modules.named_parameters() if value.grad is not None}


FORMS = {
    "improved": LiveEditLosses(),
    "paper": LiveEditLosses.paper(),
    "prefix": LiveEditLosses(mixing="prefix", same_subject="ignored"),
    "thinned": LiveEditLosses(prompt_dropout=0.4, image_dropout=0.4),
    "all mixed": LiveEditLosses(mixing="batch", text_locality=False, kl_exchanged=True),
}


ABLATIONS: dict[str, dict[str, object]] = {
    "no soft routing": {"soft_routing": False},
    "one factor": {"soft_factors": "absolute"},
    "no prompt": {"hard_prompt": False},
}
"""Changes of the editor's shape that training must honour."""


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("stage", "form"),
    [
        ("routing", "improved"),
        ("routing", "paper"),
        ("routing", "thinned"),
        ("generator", "improved"),
        *(("joint", form) for form in (*FORMS, *ABLATIONS)),
    ],
)
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(
    task_of: TaskMaker, small_config: ConfigMaker, stage: Stage, form: str, count: int
) -> None:
    torch.manual_seed(3)
    shape = small_config("paper" if form == "paper" else "improved", **ABLATIONS.get(form, {}))
    modules = LiveEditModules(shape)
    losses = FORMS.get(form, LiveEditLosses())
    whole, figures = task_of(losses).loss(modules, stage, BATCH, np.random.default_rng(1))
    wanted = gradients(modules, whole)
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-3

    shares = simulate(count, lambda own: task_of(losses, own).loss(modules, stage, BATCH, np.random.default_rng(1)))
    mean = torch.stack([loss for loss, _ in shares]).mean()
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
    for name, value in figures.items():
        assert np.mean([found[name] for _, found in shares]) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    found = gradients(modules, mean)
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert (found[name] - value).abs().max() < 1e-4 * value.abs().max() + 1e-6 * largest, name


def test_a_process_runs_its_own_rows_alone(
    task_of: TaskMaker, small_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = LiveEditModules(small_config())
    rows: dict[int, int] = {}

    def count_rows(own: Processes) -> None:
        task = task_of(LiveEditLosses(mixing="batch"), own)
        original = task._edited_logits

        def counting(modules: LiveEditModules, batch: torch.Tensor, *rest: Tensor) -> Tensor:
            rows[own.rank] = len(batch)
            return original(modules, batch, *rest)  # type: ignore[arg-type]

        task._edited_logits = counting  # type: ignore[method-assign,assignment]
        task.loss(modules, "joint", BATCH, np.random.default_rng(1))

    simulate(2, count_rows)
    each = sum(len(task_of(LiveEditLosses())._probes.places[case]) for case in BATCH[:4])
    rest = sum(len(task_of(LiveEditLosses())._probes.places[case]) for case in BATCH[4:])
    assert rows == {0: each, 1: rest}


@pytest.mark.parametrize("count", [2, 5])
def test_validation_is_the_same_for_any_number_of_processes(
    task_of: TaskMaker, small_config: ConfigMaker, count: int
) -> None:
    torch.manual_seed(3)
    modules = LiveEditModules(small_config()).eval()
    held_out = [8, 9, 10, 11]
    wanted = task_of(LiveEditLosses()).validate(modules, held_out)
    assert "reliability_routing" in wanted and "near_duplicate_locality" in wanted
    found = simulate(count, lambda own: task_of(LiveEditLosses(), own).validate(modules, held_out))
    assert found == [wanted] * count


@pytest.mark.parametrize(("part", "other"), [("prompt", "image"), ("image", "prompt")])
def test_thinned_prompts_or_images_lose_tokens_but_never_the_last(task_of: TaskMaker, part: str, other: str) -> None:
    shares = {f"{part}_dropout": 0.5, f"{other}_dropout": 0.0}
    task, rng = task_of(LiveEditLosses(**shares)), np.random.default_rng(0)  # type: ignore[arg-type]
    rows = task._rows(BATCH, [["reliability", "text_generality"]] * len(BATCH))
    thinned = task._thinned(rows, rng)
    before, after = (getattr(found.batch, f"{part}_mask") for found in (rows, thinned))
    assert not bool((after & ~before).any())
    assert 0.3 < float(after.sum() / before.sum()) < 0.8
    last = before.long().cumsum(1).argmax(1)  # The first place where the count is full.
    assert bool(after[torch.arange(len(after)), last].all())
    assert torch.equal(getattr(thinned.batch, f"{other}_mask"), getattr(rows.batch, f"{other}_mask"))
    assert torch.equal(thinned.batch.hidden_states, rows.batch.hidden_states)
    untouched = task_of(LiveEditLosses.paper())._thinned(rows, rng)
    assert untouched is rows


@pytest.mark.parametrize("form", ["paper", "masked"])
def test_soft_terms_reach_the_loss_in_both_forms(task_of: TaskMaker, small_config: ConfigMaker, form: str) -> None:
    torch.manual_seed(3)
    modules = LiveEditModules(small_config())
    found, offsets = {}, {}
    for terms in ("both", "absolute", "relative"):
        task = task_of(LiveEditLosses(soft_loss=form, soft_terms=terms))  # type: ignore[arg-type]
        loss, figures = task.loss(modules, "routing", BATCH, np.random.default_rng(1))
        found[terms] = figures["soft_loss_nats"]
        offsets[terms] = gradients(modules, loss)["prompt_offset"]
    assert len(set(found.values())) == 3
    if form == "paper":
        assert found["both"] == pytest.approx(found["absolute"] + found["relative"], rel=1e-5)
    assert abs(float(offsets["relative"])) < 1e-5 < abs(float(offsets["absolute"]))


@pytest.mark.parametrize("form", ["paper", "masked"])
def test_without_soft_routing_nothing_is_learned_of_the_prompt(
    task_of: TaskMaker, small_config: ConfigMaker, form: str
) -> None:
    modules = LiveEditModules(small_config(soft_routing=False))
    losses = LiveEditLosses(soft_loss=form)  # type: ignore[arg-type]
    for stage in ("routing", "joint"):
        loss, figures = task_of(losses).loss(modules, stage, BATCH, np.random.default_rng(1))
        assert figures["soft_loss_nats"] == 0
        found = gradients(modules, loss)
        assert not any(bool(value.any()) for name, value in found.items() if "psi" in name or name.startswith("prompt"))
        assert found["hat.attend_phi1.query.weight"].any()


def test_a_router_without_the_prompt_is_not_asked_to_tell_questions_about_one_picture_apart(
    task_of: TaskMaker, small_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    original = losses_module.hard_routing_margin

    def spy(visual: Tensor, sentinel: Tensor, own: Tensor, ignored: Tensor, *rest: float) -> Tensor:
        seen["own"], seen["ignored"] = own, ignored
        return original(visual, sentinel, own, ignored, *rest)

    monkeypatch.setattr(losses_module, "hard_routing_margin", spy)
    for hard_prompt in (True, False):
        modules = LiveEditModules(small_config(hard_prompt=hard_prompt))
        task_of(LiveEditLosses()).loss(modules, "joint", BATCH, np.random.default_rng(1))
        ignored = seen["ignored"] & ~seen["own"]
        # Each case has one question of locality about its own picture.
        assert int(ignored.sum()) == (0 if hard_prompt else len(BATCH))


def test_equal_mixing_gives_each_expert_that_is_let_in_the_same(task_of: TaskMaker, small_config: ConfigMaker) -> None:
    modules = LiveEditModules(small_config(soft_routing=False))
    task = task_of(LiveEditLosses(mixing="batch"))
    rows = task._rows(BATCH, [["reliability"]] * len(BATCH))
    made, bar = modules.edit(task._tokens(rows.batch)), task._gathered_query(modules, rows)
    own = torch.eye(len(BATCH), dtype=torch.bool)
    weights = task._mixing_weights(modules, made, bar, own, rows.has_image, np.random.default_rng(0))
    torch.testing.assert_close(weights, torch.full((7, 7), 1 / 7))


def test_the_joint_loss_is_the_sum_of_all_its_terms(task_of: TaskMaker, small_config: ConfigMaker) -> None:
    """Equations 8, 9 and 11: the edit's NLL, the KL of locality inputs, and both routing losses."""
    torch.manual_seed(3)
    modules = LiveEditModules(small_config())
    loss, figures = task_of(LiveEditLosses(mixing="batch")).loss(modules, "joint", BATCH, np.random.default_rng(1))
    others = sum(figures[name] for name in ("edit_loss_nats", "hard_loss_nats", "soft_loss_nats"))
    assert figures["kl_nats"] > 1e-3
    assert loss.item() - others == pytest.approx(figures["kl_nats"], rel=1e-2)


def test_an_own_expert_is_mixed_although_hard_routing_keeps_it_out(
    task_of: TaskMaker, small_config: ConfigMaker
) -> None:
    modules = LiveEditModules(small_config())
    task = task_of(LiveEditLosses(mixing="routed"))
    rows = task._rows(BATCH, [["reliability"]] * len(BATCH))
    made, query = modules.edit(task._tokens(rows.batch)), task._gathered_query(modules, rows)
    kept_out = QueryFeatures(query.visual, query.visual, query.prompt)  # The sentinel is the best match there is.
    own = torch.eye(len(BATCH), dtype=torch.bool)
    weights = task._mixing_weights(modules, made, kept_out, own, rows.has_image, np.random.default_rng(0))
    assert torch.equal(weights > 0, own)


def test_the_generator_is_trained_with_each_expert_at_its_full_weight(
    task_of: TaskMaker, small_config: ConfigMaker, random_backbone: Backbone
) -> None:
    """h + relu(LayerNorm(h) U^T) V with weight 1, as an expert that is alone has at query time."""
    torch.manual_seed(3)
    modules, task = LiveEditModules(small_config()), task_of(LiveEditLosses())
    names = ["reliability", "text_generality", "modal_generality"]
    found, _ = task.loss(modules, "generator", BATCH[:1], np.random.default_rng(1))
    rows, edits = task._rows(BATCH[:1], [names], shared=False), task._rows(BATCH[:1], [names[:1]], shared=False)
    made = modules.edit(task._tokens(edits.batch))
    batch, expanded = rows.batch, (len(names), 1, -1, -1)
    ones = torch.ones(len(names), 1)
    residual = expert_residual(
        batch.hidden_states, made.u[None].expand(expanded), made.v[None].expand(expanded), ones, modules.config
    )
    changed = changed_tokens(batch, modules.config)
    states = batch.hidden_states + residual * changed[..., None]
    logits = random_backbone.logits_from(states, batch, modules.config.layer, batch.predicting)
    assert found.item() == pytest.approx(F.cross_entropy(logits, batch.targets).item(), rel=1e-6)
    unedited = random_backbone.logits_from(batch.hidden_states, batch, modules.config.layer, batch.predicting)
    assert found.item() != pytest.approx(F.cross_entropy(unedited, batch.targets).item(), rel=1e-3)


@pytest.mark.parametrize("scope", ["image", "text+image"])
def test_queries_without_an_image_are_routed_if_they_are_in_scope(
    task_of: TaskMaker, small_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """In validation, and where the joint stage mixes the experts that pass."""
    modules, task = LiveEditModules(small_config(scope=scope)), task_of(LiveEditLosses(mixing="routed"))
    rows = task._rows(BATCH, [["text_locality"]] * len(BATCH))
    edits = task._rows(BATCH, [["reliability"]] * len(BATCH))
    made, query = modules.edit(task._tokens(edits.batch)), task._gathered_query(modules, rows)
    query = replace(query, visual=made.visual, sentinel=torch.zeros_like(query.sentinel))  # Every edit's own passes.
    none_own = torch.zeros(len(BATCH), len(BATCH), dtype=torch.bool)
    reachable = task_module._reachable(modules, rows)
    weights = task._mixing_weights(modules, made, query, none_own, reachable, np.random.default_rng(0))
    assert bool((weights > 0).any()) == (scope == "text+image")

    seen: list[Tensor] = []
    route = task_module.route
    monkeypatch.setattr(task_module, "route", lambda *given: seen.append(given[2]) or route(*given))
    task._right(modules.eval(), ExpertRepository(), BATCH, "text_locality")
    assert [bool(given.any()) for given in seen] == [scope == "text+image"]
