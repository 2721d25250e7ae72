"""The losses against equations 9 to 16 as plain loops, and against what they are for."""

from __future__ import annotations

import math

import pytest
import reference
import torch

from liveedit.editors.liveedit import losses

# Five queries, four edits. Query 1 has two own edits; queries 3 and 4 have none (locality).
OWN = torch.tensor(
    [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, False, True],
        [False, False, False, False],
        [False, False, False, False],
    ]
)


def scores_of(seed: int, rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SENTINEL = torch.tensor([0.2, -0.4, 0.1, 0.7, -0.9], dtype=torch.float64)


def test_answer_nll_is_equation_9_over_tokens() -> None:
    logits, targets = scores_of(0), torch.tensor([0, 3, 2, 2, 1])
    loop = [reference.info_nce(row, wanted) for row, wanted in zip(logits.tolist(), targets, strict=True)]
    assert float(losses.answer_nll(logits, targets)) == pytest.approx(sum(loop) / 5, rel=1e-6)


@pytest.mark.parametrize("exchanged", [False, True])
def test_locality_kl_is_equation_11_over_tokens(exchanged: bool) -> None:
    base, edited = scores_of(0), scores_of(1)
    total = 0.0
    for p_row, q_row in zip(base.tolist(), edited.tolist(), strict=True):
        p, q = reference.softmax(p_row), reference.softmax(q_row)
        if exchanged:
            p, q = q, p
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(losses.locality_kl(base, edited, exchanged)) == pytest.approx(total / 5, rel=1e-5)


def test_locality_kl_of_the_same_is_zero() -> None:
    assert float(losses.locality_kl(scores_of(0), scores_of(0))) == pytest.approx(0, abs=1e-7)


def test_hard_routing_is_equations_13_and_14() -> None:
    visual = scores_of(2)
    total = 0.0
    for row in range(5):
        choices = [*visual[row].tolist(), float(SENTINEL[row])]
        wanted = OWN[row].nonzero().flatten().tolist() or [4]
        total += sum(reference.info_nce(choices, place) for place in wanted) / len(wanted)
    assert float(losses.hard_routing_paper(visual, SENTINEL, OWN)) == pytest.approx(total / 5)


def test_hard_routing_with_margins_worked_by_hand() -> None:
    visual, margin, weight = scores_of(2), 2.0, 0.5
    ignored = torch.zeros_like(OWN)
    ignored[4, 0] = True
    positive, negative = [], []
    for row in range(5):
        gaps = [float(value - SENTINEL[row]) for value in visual[row]]
        positive += [math.log(1 + math.exp(margin - gaps[place])) for place in range(4) if OWN[row, place]]
        others = [place for place in range(4) if not OWN[row, place] and not ignored[row, place]]
        negative.append(math.log(1 + sum(math.exp(gaps[place] + margin) for place in others)))
    wanted = sum(positive) / len(positive) + weight * sum(negative) / 5
    found = losses.hard_routing_margin(visual, SENTINEL, OWN, ignored, margin, weight)
    assert float(found) == pytest.approx(wanted)


@pytest.mark.parametrize("form", ["paper", "margin"])
def test_hard_routing_is_small_only_where_routing_is_right(form: str) -> None:
    def loss(visual: torch.Tensor) -> float:
        if form == "paper":
            return float(losses.hard_routing_paper(visual, SENTINEL, OWN))
        return float(losses.hard_routing_margin(visual, SENTINEL, OWN, torch.zeros_like(OWN), 2.0, 1.0))

    right = torch.where(OWN, 20.0, -20.0).double()
    wrong_edit = right.clone()
    wrong_edit[0] = torch.tensor([-20.0, 20.0, -20.0, -20.0])
    fires_outside = right.clone()
    fires_outside[3, 2] = 20.0
    silent = right.clone()
    silent[2, 3] = -20.0
    assert loss(right) < 0.2
    assert all(loss(visual) > 2 for visual in (wrong_edit, fires_outside, silent))


def test_soft_routing_is_equations_15_and_16() -> None:
    """With two edits the random other of equation 15 can only be the one that is not the own."""
    prompt = scores_of(3, rows=3)[:, :2]
    own = torch.tensor([[True, False], [False, True], [False, False]])
    total = 0.0
    for row, mine in ((0, 0), (1, 1)):
        scores = prompt[row].tolist()
        total -= math.log(reference.sigmoid(scores[mine]))
        total -= math.log(1 - reference.sigmoid(scores[1 - mine]))
        total += reference.info_nce(scores, mine)
    generator = torch.Generator().manual_seed(0)
    assert float(losses.soft_routing_paper(prompt, own, generator)) == pytest.approx(total / 2)


@pytest.mark.parametrize("terms", ["absolute", "relative"])
def test_each_term_of_soft_routing_alone_is_its_equation(terms: losses.SoftTerms) -> None:
    prompt = scores_of(3, rows=3)[:, :2]
    own = torch.tensor([[True, False], [False, True], [False, False]])
    total = 0.0
    for row, mine in ((0, 0), (1, 1)):
        scores = prompt[row].tolist()
        if terms == "absolute":  # Equation 15
            total -= math.log(reference.sigmoid(scores[mine])) + math.log(1 - reference.sigmoid(scores[1 - mine]))
        else:  # Equation 16
            total += reference.info_nce(scores, mine)
    found = losses.soft_routing_paper(prompt, own, torch.Generator().manual_seed(0), terms)
    assert float(found) == pytest.approx(total / 2)


def test_both_terms_of_soft_routing_are_their_sum() -> None:
    prompt = scores_of(3)
    parts = {
        terms: float(losses.soft_routing_paper(prompt, OWN, torch.Generator().manual_seed(5), terms))
        for terms in ("both", "absolute", "relative")
    }
    assert parts["both"] == pytest.approx(parts["absolute"] + parts["relative"])


def test_soft_routing_draws_its_negative_among_the_others() -> None:
    prompt, own = scores_of(3)[:1], OWN[:1]
    first = -math.log(reference.sigmoid(float(prompt[0, 0])))
    relative = reference.info_nce(prompt[0].tolist(), 0)
    possible = [first - math.log(1 - reference.sigmoid(float(prompt[0, k]))) + relative for k in (1, 2, 3)]
    seen = set()
    for seed in range(40):
        found = float(losses.soft_routing_paper(prompt, own, torch.Generator().manual_seed(seed)))
        (place,) = [k for k, value in enumerate(possible) if value == pytest.approx(found)]
        seen.add(place)
    assert seen == {0, 1, 2}


def test_soft_routing_masked_worked_by_hand() -> None:
    prompt, weight = scores_of(4), 0.5
    asks_same = torch.zeros_like(OWN)
    asks_same[0, 2] = asks_same[3, 1] = True
    positive, negative = [], []
    for row in range(5):
        scores = prompt[row].tolist()
        positive += [math.log(1 + math.exp(-scores[k])) for k in range(4) if OWN[row, k]]
        others = [scores[k] for k in range(4) if not OWN[row, k] and not asks_same[row, k]]
        negative.append(math.log(1 + sum(map(math.exp, others))))
    wanted = sum(positive) / len(positive) + weight * sum(negative) / 5
    found = losses.soft_routing_masked(prompt, losses.PairKinds(OWN, asks_same), weight)
    assert float(found) == pytest.approx(wanted)


def test_soft_routing_masked_leaves_edits_that_ask_the_same_alone() -> None:
    prompt = scores_of(4).requires_grad_()
    asks_same = torch.zeros_like(OWN)
    asks_same[0, 2] = True
    loss = losses.soft_routing_masked(prompt, losses.PairKinds(OWN, asks_same), 1.0)
    (gradient,) = torch.autograd.grad(loss, prompt)
    assert gradient[0, 2] == 0
    assert (gradient[~asks_same] != 0).all()


def test_soft_routing_masked_without_any_own_edit() -> None:
    prompt = scores_of(4)[3:].requires_grad_()
    kinds = losses.PairKinds(OWN[3:], torch.zeros_like(OWN[3:]))
    loss = losses.soft_routing_masked(prompt, kinds, 1.0)
    assert loss.item() > 0
    (gradient,) = torch.autograd.grad(loss, prompt)
    assert torch.isfinite(gradient).all()


MASKED = torch.zeros_like(OWN)
MASKED[0, 2] = MASKED[3, 1] = True
"""Pairs that ask the same without belonging together."""


def test_the_absolute_masked_term_is_equation_15_over_all_possible_draws() -> None:
    """The mean over every negative that equation 15 might draw, same askers apart, for queries of any kind."""
    prompt, weight = scores_of(4), 0.5
    positive, negative = [], []
    for row in range(5):
        scores = prompt[row].tolist()
        positive += [-math.log(reference.sigmoid(scores[k])) for k in range(4) if OWN[row, k]]
        others = [-math.log(1 - reference.sigmoid(scores[k])) for k in range(4) if not (OWN | MASKED)[row, k]]
        negative.append(sum(others) / len(others))
    wanted = sum(positive) / len(positive) + weight * sum(negative) / 5
    found = losses.soft_routing_masked(prompt, losses.PairKinds(OWN, MASKED), weight, "absolute")
    assert float(found) == pytest.approx(wanted)


def test_the_relative_masked_term_is_equation_16_without_same_askers() -> None:
    prompt = scores_of(4)
    found = []
    for row in range(5):
        scores = prompt[row].tolist()
        others = [scores[k] for k in range(4) if not (OWN | MASKED)[row, k]]
        found += [reference.info_nce([scores[k], *others], 0) for k in range(4) if OWN[row, k]]
    wanted = sum(found) / len(found)
    kinds = losses.PairKinds(OWN, MASKED)
    assert float(losses.soft_routing_masked(prompt, kinds, 0.5, "relative")) == pytest.approx(wanted)


@pytest.mark.parametrize("form", ["paper", "masked"])
def test_only_the_relative_term_does_not_see_a_shift_of_all_scores(form: str) -> None:
    """What table 2 takes away: without the absolute term nothing says how large a score has to be."""

    def loss(shift: float, terms: losses.SoftTerms) -> float:
        if form == "paper":
            return float(losses.soft_routing_paper(scores_of(4) + shift, OWN, torch.Generator().manual_seed(5), terms))
        return float(losses.soft_routing_masked(scores_of(4) + shift, losses.PairKinds(OWN, MASKED), 1.0, terms))

    assert loss(3.0, "relative") == pytest.approx(loss(0.0, "relative"))
    assert loss(3.0, "absolute") > loss(0.0, "absolute") + 0.5


@pytest.mark.parametrize("terms", ["both", "absolute", "relative"])
def test_masked_terms_have_gradients_where_a_query_has_no_negative(terms: losses.SoftTerms) -> None:
    prompt = scores_of(4)[:1].requires_grad_()
    kinds = losses.PairKinds(OWN[:1], torch.ones_like(OWN[:1]))
    loss = losses.soft_routing_masked(prompt, kinds, 1.0, terms)
    (gradient,) = torch.autograd.grad(loss, prompt)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, 0] == 0) == (terms == "relative")  # Nobody is there to be nearer than.
    assert not gradient[0, 1:].any()
