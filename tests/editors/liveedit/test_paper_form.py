"""The paper's form of the training: sections 4.1 to 4.3 once more as slow loops, and the random choices in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
import torch
from reference import ReferenceExpert, Vector
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateBatch, HiddenStateCache
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditLosses, losses
from liveedit.editors.liveedit.config import PAPER_LOSSES
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.probes import TrainingProbes
from liveedit.editors.liveedit.task import LiveEditTask, Stage
from liveedit.editors.trained import training_setup
from liveedit.errors import BackboneError
from liveedit.experts import LowRankExpert
from liveedit.samples import LOCALITY, EditCase, Question
from liveedit.testing import tiny_backbone
from liveedit.training.trainer import TrainingConfig

BATCH = (4, 0, 7)
"""Three cases; no probe of one is in the scope of another's edit."""


@dataclass
class Sample:
    """One input of a training, alone: its question and answer, and its hidden states at the edit layer."""

    question: Question
    answer: str
    row: HiddenStateBatch

    @property
    def image(self) -> reference.Matrix:
        """h_v."""
        return self.row.hidden_states[self.row.image_mask].tolist()

    @property
    def prompt(self) -> reference.Matrix:
        """h_p."""
        return self.row.hidden_states[self.row.prompt_mask].tolist()

    @property
    def whole(self) -> reference.Matrix:
        """[h_v; h_p; h_o], in the order of the model."""
        return self.row.hidden_states[0].tolist()


class SlowPaper:
    """The equations of sections 4.1 to 4.3, one input at a time. Only the model's own layers are run by torch."""

    def __init__(self, backbone: Backbone, modules: LiveEditModules):
        self.backbone, self.layer = backbone, modules.config.layer
        weights = modules.state_dict()
        self.generator, self.hat, self.bar = (reference.part_of(weights, name) for name in ("generator", "hat", "bar"))
        self.sentinel = reference.matrix(weights["sentinel"])
        self.module_width = modules.config.module_width

    def similarity(self, a: Vector, b: Vector) -> float:
        """An inner product, rescaled by sqrt(d_m)."""
        return reference.dot(a, b) / math.sqrt(self.module_width)

    def psi(self, side: reference.Weights, sample: Sample) -> Vector:
        """Equation 3, the second feature."""
        start, weights = reference.matrix(side["psi0"]), reference.part_of(side, "attend_psi")
        return reference.cross_attention(start, [sample.prompt], weights)[0]

    def phi(self, side: reference.Weights, image: reference.Matrix, sample: Sample) -> Vector:
        """Equation 3, the first feature: 0 if there is no image to read."""
        start, weights = reference.matrix(side["phi0"]), reference.part_of(side, "attend_phi1")
        asked = reference.cross_attention(start, [sample.prompt], weights)
        return reference.cross_attention(asked, [image], reference.part_of(side, "attend_phi2"))[0]

    def expert(self, edit: Sample) -> ReferenceExpert:
        """Equation 1, and psi_hat of the edit."""
        u, v = reference.generate_expert(self.generator, [edit.whole])
        return ReferenceExpert(u, v, [], self.psi(self.hat, edit))

    def edited(self, sample: Sample, experts: Sequence[ReferenceExpert]) -> list[Vector]:
        """The logits that predict the answer, with all experts mixed by equations 6 and 7."""
        psi = self.psi(self.bar, sample)
        scores = [self.similarity(psi, expert.prompt) for expert in experts]
        named = {str(number): expert for number, expert in enumerate(experts)}
        weights = {
            name: reference.sigmoid(score) * share
            for name, score, share in zip(named, scores, reference.softmax(scores), strict=True)
        }
        states = reference.edited_states(sample.whole, named, weights)
        inputs = self.backbone.encode([sample.question], [sample.answer])
        with torch.no_grad(), output_replaced(self.backbone.layers[self.layer], torch.tensor([states])):
            return self.backbone.logits(inputs)[inputs.predicting].double().tolist()

    def unedited(self, sample: Sample) -> list[Vector]:
        """The same logits of the unedited model, from its final hidden states."""
        with torch.no_grad():
            return self.backbone.head(sample.row.final).double().tolist()

    def nll(self, sample: Sample, experts: Sequence[ReferenceExpert]) -> float:
        """Equations 9 and 10: -log of the probability of the whole answer."""
        rows = zip(self.edited(sample, experts), sample.row.targets.tolist(), strict=True)
        return math.fsum(reference.info_nce(logits, target) for logits, target in rows)

    def kl(self, sample: Sample, experts: Sequence[ReferenceExpert]) -> float:
        """Equation 11, over the whole answer."""
        total = []
        for base, edited in zip(self.unedited(sample), self.edited(sample, experts), strict=True):
            p, q = reference.softmax(base), reference.softmax(edited)
            total += [a * math.log(a / b) for a, b in zip(p, q, strict=True)]
        return math.fsum(total)

    def hard(self, query: Sample, edits: Sequence[Vector], own: int | None) -> float:
        """A term of equation 13: the wanted key is that of the own edit, or the sentinel's if there is none."""
        phi, theta = (self.phi(self.bar, image, query) for image in (query.image, self.sentinel))
        scores = [self.similarity(phi, key) for key in (*edits, theta)]
        return reference.info_nce(scores, len(edits) if own is None else own)

    def soft(self, query: Sample, candidates: Sequence[Vector], own: int, other: int) -> float:
        """Equations 15 and 16."""
        psi = self.psi(self.bar, query)
        scores = [self.similarity(psi, key) for key in candidates]
        absolute = -math.log(reference.sigmoid(scores[own])) - math.log(1 - reference.sigmoid(scores[other]))
        return absolute + reference.info_nce(scores, own)


@contextmanager
def output_replaced(layer: torch.nn.Module, states: Tensor) -> Iterator[None]:
    """Inside, the layer's output is these states."""

    def replace(module: Any, arguments: Any, output: Any) -> Any:
        return states.float() if isinstance(output, Tensor) else (states.float(), *output[1:])

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def modules(small_config: Callable[..., LiveEditConfig]) -> LiveEditModules:
    """With experts that are strong enough to change answers."""
    torch.manual_seed(3)
    made = LiveEditModules(small_config("paper", module_width=8, value_start=None))
    with torch.no_grad():
        for value in made.generator.attend_v.values.parameters():
            value.mul_(20)
    return made


@pytest.fixture
def task(random_backbone: Backbone, train_cases: tuple[EditCase, ...], modules: LiveEditModules) -> LiveEditTask:
    store = HiddenStateCache(random_backbone, modules.config.layer)
    made = LiveEditTask(random_backbone, modules.config.layer, train_cases, LiveEditLosses.paper(), store)
    made.prepare()
    return made


class Drawn:
    """The samples of a step, by the random choices that the task makes with the same generator, in its order."""

    def __init__(self, task: LiveEditTask):
        rng, probes = np.random.default_rng(5), task._probes
        general, outside = probes.samples(BATCH, rng)
        sides = probes.random_sides(general, outside, rng)

        def of(names: Sequence[Sequence[str]]) -> list[Sample]:
            places = [probes.places[case][name] for case, (name,) in zip(BATCH, names, strict=True)]
            return [Sample(*task.items[place], task.store.batch([place])) for place in places]

        self.edits, self.general, self.outside = of([["reliability"]] * len(BATCH)), of(general), of(outside)
        self.edit_side, self.query_side = of(sides.edits), of(sides.inside)


def routing_loss(paper: SlowPaper, drawn: Drawn, others: Sequence[int]) -> tuple[float, float]:
    """Equations 12 to 16: the sums over the batch of the hard and of the soft terms."""
    visual = [paper.phi(paper.hat, sample.image, sample) for sample in drawn.edit_side]
    prompt = [paper.psi(paper.hat, sample) for sample in (*drawn.edit_side, *drawn.outside)]
    hard = [paper.hard(query, visual, own) for own, query in enumerate(drawn.query_side)]
    hard += [paper.hard(query, visual, None) for query in drawn.outside]
    soft = [paper.soft(query, prompt, own, others[own]) for own, query in enumerate(drawn.query_side)]
    return math.fsum(hard), math.fsum(soft)


@pytest.mark.parametrize("stage", ["routing", "joint"])
def test_the_loss_is_that_of_section_4_3(
    task: LiveEditTask,
    modules: LiveEditModules,
    random_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
) -> None:
    seen: list[Tensor] = []
    draw = losses.drawn_others
    monkeypatch.setattr(losses, "drawn_others", lambda *given: seen.append(draw(*given)) or seen[-1])
    found, figures = task.loss(modules, stage, BATCH, np.random.default_rng(5))
    (others,) = seen

    paper, drawn = SlowPaper(random_backbone, modules), Drawn(task)
    hard, soft = routing_loss(paper, drawn, others.tolist())
    assert figures["hard_loss_nats"] == pytest.approx(hard, rel=1e-4)
    assert figures["soft_loss_nats"] == pytest.approx(soft, rel=1e-4)
    total = hard + soft
    if stage == "joint":
        experts = [paper.expert(edit) for edit in drawn.edits]
        edit = math.fsum(paper.nll(sample, experts) for sample in (*drawn.edits, *drawn.general)) / len(BATCH)
        kl = math.fsum(paper.kl(sample, experts) for sample in drawn.outside) / len(BATCH)
        assert figures["edit_loss_nats"] == pytest.approx(edit, rel=1e-4)
        assert kl > 0.1
        assert figures["kl_nats"] == pytest.approx(kl, rel=1e-3)
        total += edit + kl
    assert found.item() == pytest.approx(total, rel=1e-4)


# -- the random choices ----------------------------------------------------------------------------------------


@pytest.fixture
def probes(train_cases: tuple[EditCase, ...]) -> TrainingProbes:
    return TrainingProbes(train_cases, text_locality=True)


def test_either_side_of_routing_has_the_edit_or_its_sample_by_itself(probes: TrainingProbes) -> None:
    rng, seen = np.random.default_rng(0), Counter[tuple[bool, bool]]()
    for _ in range(400):
        general, outside = probes.samples([4, 7], rng)
        sides = probes.random_sides(general, outside, rng)
        assert sides.outside == outside
        for sample, edit_side, query_side in zip(general, sides.edits, sides.inside, strict=True):
            assert edit_side in (["reliability"], sample) and query_side in (["reliability"], sample)
            seen[edit_side == sample, query_side == sample] += 1
    assert len(seen) == 4
    assert all(count / 800 == pytest.approx(1 / 4, abs=0.05) for count in seen.values())


@pytest.mark.parametrize("text_locality", [True, False])
def test_samples_are_one_generality_and_one_locality_probe(
    train_cases: tuple[EditCase, ...], text_locality: bool
) -> None:
    probes, rng = TrainingProbes(train_cases, text_locality), np.random.default_rng(0)
    drawn = [probes.samples([4], rng) for _ in range(500)]
    general, outside = (Counter(name for ((name,),) in kind) for kind in zip(*drawn, strict=True))
    locality = set(LOCALITY) - (set() if text_locality else {"text_locality"})
    for found, wanted in ((general, {"text_generality", "modal_generality"}), (outside, locality)):
        assert found.keys() == wanted
        assert all(count / 500 == pytest.approx(1 / len(wanted), abs=0.07) for count in found.values())


def test_a_case_without_probes_is_its_own_sample(train_cases: tuple[EditCase, ...]) -> None:
    bare = EditCase("bare", train_cases[0].edit)
    assert TrainingProbes([bare], True).samples([0], np.random.default_rng(0)) == ([["reliability"]], [[]])


def test_the_other_of_equation_15_is_drawn_anew_in_each_step(
    task: LiveEditTask, modules: LiveEditModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    draw = losses.drawn_others
    monkeypatch.setattr(losses, "drawn_others", lambda *given: seen.append(draw(*given)) or seen[-1])
    for step in range(12):
        task.loss(modules, "routing", BATCH, np.random.default_rng(step))
    drawn = torch.stack(seen)
    assert len(drawn.unique(dim=0)) > 6
    assert set(drawn.unique().tolist()) == set(range(2 * len(BATCH)))  # Edits and locality inputs.


# -- what an edit of this form reaches, and how it is trained --------------------------------------------------


def test_no_expert_passes_for_a_query_without_an_image(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig], random_expert: Callable[..., LowRankExpert]
) -> None:
    """Equation 5 holds for any query. Without an image both of its sides are 0, and 0 > 0 is false."""
    with LiveEdit.untrained(random_backbone, small_config("paper")) as editor:
        assert editor.config.scope == "text+image" and editor.needs_image
        for seed in range(5):
            editor.add(str(seed), random_expert(seed))
        tokens = editor.read(random_backbone.encode([Question("What is the capital of Coraland?")]))
        assert not editor.query(tokens).visual.any()
        assert editor._route_prefill(tokens) is None
    with LiveEdit.untrained(random_backbone, small_config(scope="text+image")) as editor:
        assert not editor.needs_image and bool(editor.query(tokens).visual.any())


def test_it_is_refused_for_a_model_that_reads_text_alone() -> None:
    llama = tiny_backbone("llama")
    config = training_setup(LiveEdit, llama, {}, "paper").config
    with pytest.raises(BackboneError, match="reads text alone: no edit would ever fire"):
        LiveEdit.untrained(llama, config)
    LiveEdit.untrained(llama).detach()


def test_it_is_trained_by_adam_at_one_rate_from_the_start(random_backbone: Backbone) -> None:
    """Section 7.4."""
    setup = training_setup(LiveEdit, random_backbone, {}, "paper")
    (stage,) = [stage for stage in setup.training.stages if stage.steps]
    assert (stage.name, stage.steps, stage.batch, stage.learning_rate) == ("joint", 200_000, 8, 1e-4)
    training = setup.training
    assert (training.weight_decay, training.beta2, training.warmup, training.decay) == (0, 0.999, 0, "constant")
    assert (training.clip, training.keep, training.validate_every) == (None, "loss", 500)
    changed = training_setup(LiveEdit, random_backbone, {"clip": 1.0, "reduction": "mean"}, "paper")
    assert changed.training.clip == 1.0 and changed.options == LiveEditLosses(**{**PAPER_LOSSES, "reduction": "mean"})
    assert training_setup(LiveEdit, random_backbone, {}).training == TrainingConfig(stages=LiveEdit.default_stages())
