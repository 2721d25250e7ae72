"""What RECIPE is trained on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from simulated_processes import simulate
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.backbones.prompt_transforms import PreparedQuestion
from liveedit.editors.recipe import RecipeConfig
from liveedit.editors.recipe.modules import RecipeModules
from liveedit.editors.recipe.task import RecipeTask, Stage, retrieval_loss
from liveedit.samples import EditCase
from liveedit.training.distributed import Processes

BATCH = [4, 0, 7, 2, 9]
CONFIG = RecipeConfig.model_validate(
    {"width": 192, "layer": 3, "features": 32, "generator_width": 32, "locality_share": 0.6}
)


@pytest.fixture
def modules() -> RecipeModules:
    torch.manual_seed(0)
    return RecipeModules(CONFIG)


@pytest.fixture(scope="module")
def store(shared_random_backbone: Backbone, train_cases: tuple[EditCase, ...]) -> HiddenStateCache:
    task = RecipeTask(shared_random_backbone, CONFIG, train_cases)
    task.prepare()
    return task.store


@pytest.fixture
def task(random_backbone: Backbone, train_cases: tuple[EditCase, ...], store: HiddenStateCache) -> RecipeTask:
    return RecipeTask(random_backbone, CONFIG, train_cases, store)


def test_the_retrieval_loss_by_hand() -> None:
    edits = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    sentinel = torch.tensor([1.0, -0.5])
    own = torch.tensor([[True, False], [False, False]])

    def lost(wanted: float, *all_of_them: float) -> float:
        return math.log(sum(math.exp(value) for value in all_of_them)) - wanted

    finds = lost(2.0, 2.0, 0.5, 1.0)
    border = (lost(1.0, 0.5, 1.0) + lost(-0.5, 0.0, 1.0, -0.5)) / 2
    assert float(retrieval_loss(edits, sentinel, own)) == pytest.approx(finds + border, rel=1e-5)
    outside = retrieval_loss(edits[1:], sentinel[1:], own[1:])
    assert float(outside) == pytest.approx(lost(-0.5, 0.0, 1.0, -0.5), rel=1e-5)


@torch.no_grad()
def test_the_prompt_loss_is_that_of_each_row_alone(
    task: RecipeTask, modules: RecipeModules, random_backbone: Backbone
) -> None:
    _, figures = task.loss(modules, "prompts", BATCH, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    inside = [task._some_inside(case, 1, rng)[0] for case in BATCH]
    chosen = rng.permutation(len(BATCH))[:3].tolist()
    outside = {place: task._one_outside(BATCH[place], rng)[0] for place in sorted(chosen)}
    said, kept = [], []
    for place, case in enumerate(BATCH):
        prompt = modules.generator(task.rows([case], [["reliability"]]).tokens)[0]
        for name in [inside[place], *([outside[place]] if place in outside else [])]:
            question, answer = task.items[task.places[case][name]]
            unedited = random_backbone.encode([question], [answer])
            with random_backbone.transformed(lambda asked, prompt=prompt: [PreparedQuestion(asked[0], prompt)]):
                inputs = random_backbone.encode([question], [answer])
            logits = random_backbone.logits(inputs)[inputs.predicting].log_softmax(-1)
            if name in outside.values() and name != inside[place]:
                base = random_backbone.logits(unedited)[unedited.predicting].log_softmax(-1)
                kept += (base.exp() * (base - logits)).sum(-1).tolist()
            else:
                said += F.nll_loss(logits, inputs.input_ids[inputs.answer_mask], reduction="none").tolist()
    assert figures["edit_loss_nats"] == pytest.approx(np.mean(said), rel=1e-3)
    assert figures["kl_nats"] == pytest.approx(np.mean(kept), rel=0.05, abs=1e-4)


def test_each_stage_trains_its_own_part(task: RecipeTask, modules: RecipeModules) -> None:
    trained: dict[Stage, set[str]] = {"retrieval": set(), "prompts": set()}
    for stage, names in trained.items():
        modules.zero_grad(set_to_none=True)
        task.loss(modules, stage, BATCH, np.random.default_rng(0))[0].backward()
        names |= {name for name, weight in modules.named_parameters() if weight.grad is not None}
    generator = {f"generator.{name}" for name, _ in modules.generator.named_parameters()}
    assert trained["prompts"] == generator
    assert trained["retrieval"] == {name for name, _ in modules.named_parameters()} - generator


@pytest.mark.parametrize("stage", ["retrieval", "prompts"])
def test_several_processes_compute_the_loss_of_one(
    random_backbone: Backbone,
    train_cases: tuple[EditCase, ...],
    store: HiddenStateCache,
    modules: RecipeModules,
    stage: Stage,
) -> None:
    def loss(processes: Processes) -> torch.Tensor:
        made = RecipeTask(random_backbone, CONFIG, train_cases, store, processes)
        return made.loss(modules, stage, BATCH, np.random.default_rng(5))[0]

    alone = loss(Processes())
    together = torch.stack(simulate(2, loss)).mean()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(alone, list(modules.parameters()), allow_unused=True)
    found = torch.autograd.grad(together, list(modules.parameters()), allow_unused=True)
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_validation_tells_a_border_that_is_too_low_and_one_that_is_too_high(
    task: RecipeTask, modules: RecipeModules
) -> None:
    modules.eval()
    keys = modules.keys(task.rows(BATCH, [["reliability"]] * len(BATCH)).tokens).detach()
    with torch.no_grad():
        modules.as_query[2].weight.zero_()
        modules.as_query[2].bias.zero_()
        modules.sentinel.copy_(-keys.mean(0))
    low = task.validate(modules, BATCH)
    assert low["reliability_retrieval"] == 100
    assert low["modal_locality_retrieval"] == 0
    with torch.no_grad():  # A query is its key here: nothing is nearer to it than the sentinel that is the same.
        modules.sentinel.copy_(keys[0])
    high = task.validate(modules, BATCH[:1])
    assert high["reliability_retrieval"] == 0
    assert 0 <= high["text_generality"] <= 100
    assert set(high) >= {"modal_generality", "near_duplicate_locality_retrieval", "text_locality_retrieval"}
