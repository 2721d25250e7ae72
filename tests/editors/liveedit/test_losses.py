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
    each = []
    for row in range(5):
        choices = [*visual[row].tolist(), float(SENTINEL[row])]
        wanted = OWN[row].nonzero().flatten().tolist() or [4]
        each.append(sum(reference.info_nce(choices, place) for place in wanted) / len(wanted))
    assert losses.hard_routing_paper(visual, SENTINEL, OWN).tolist() == pytest.approx(each)


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
            return float(losses.hard_routing_paper(visual, SENTINEL, OWN).mean())
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


# Three in-scope queries, three edits and two locality inputs.
CANDIDATES = 5
OWN_CANDIDATES = torch.eye(3, CANDIDATES).bool()
OTHERS = torch.tensor([4, 0, 3])


def candidate_scores() -> torch.Tensor:
    return torch.randn(3, CANDIDATES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("terms", ["both", "absolute", "relative"])
def test_soft_routing_is_equations_15_and_16(terms: losses.SoftTerms) -> None:
    """The other of equation 15, and the candidates of equation 16, are edits and locality inputs alike."""
    each = []
    for row, scores in enumerate(candidate_scores().tolist()):
        absolute = -math.log(reference.sigmoid(scores[row])) - math.log(1 - reference.sigmoid(scores[OTHERS[row]]))
        relative = reference.info_nce(scores, row)
        each.append({"both": absolute + relative, "absolute": absolute, "relative": relative}[terms])
    found = losses.soft_routing_paper(candidate_scores(), OWN_CANDIDATES, OTHERS, terms)
    assert found.tolist() == pytest.approx(each)


def test_the_other_candidate_is_drawn_among_all_that_are_not_own() -> None:
    own = torch.zeros(4000, 4, dtype=torch.bool)
    own[:, 1] = True
    drawn = losses.drawn_others(own, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.03)
    assert torch.equal(drawn, losses.drawn_others(own, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, losses.drawn_others(own, torch.Generator().manual_seed(1)))


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
            return float(losses.soft_routing_paper(candidate_scores() + shift, OWN_CANDIDATES, OTHERS, terms).mean())
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
