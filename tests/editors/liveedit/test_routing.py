"""From query features to a residual: against slow reference loops, and what must not change a bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import reference
import torch
from jaxtyping import TypeCheckError

from liveedit.backbones import TokenBatch
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.shared.routing import (
    Combining,
    QueryFeatures,
    Routing,
    Weighting,
    changed_tokens,
    expert_residual,
    hard_routed,
    route,
    soft_weights,
)
from liveedit.experts import ExpertRepository, LowRankExpert, blocks
from liveedit.experts.blocks import ExpertsOn

WIDTH, FEATURES = 12, 16
SIZES = {"width": WIDTH, "layer": 0, "image_tokens": 3, "module_width": 8, "rank": 2, "feature_parts": 2}
EVERY = torch.ones(3, dtype=torch.bool)


def modules_of(form: str = "improved", **changes: object) -> LiveEditModules:
    torch.manual_seed(0)
    if form == "paper":
        return LiveEditModules(LiveEditConfig.paper(**{**SIZES, **changes}))  # type: ignore[arg-type]
    modules = LiveEditModules(LiveEditConfig.create(**{**SIZES, "heads": 2, **changes}))
    with torch.no_grad():
        modules.visual_temperature.fill_(0.7)
        modules.prompt_temperature.fill_(0.4)
        modules.prompt_offset.fill_(0.3)
    return modules


def experts_of(count: int, seed: int = 0) -> dict[str, LowRankExpert]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, WIDTH), (2, WIDTH), (FEATURES,), (FEATURES,), (FEATURES,))
    return {
        f"edit-{index}": LowRankExpert(*(torch.randn(shape, generator=generator) for shape in shapes))
        for index in range(count)
    }


def repository_of(
    experts: dict[str, LowRankExpert], order: Sequence[str] | None = None, experts_on: ExpertsOn = "device"
) -> ExpertRepository:
    repository = ExpertRepository(experts_on=experts_on)
    for name in order or experts:
        repository.add(name, experts[name])
    return repository


def query_of(rows: int = 3, seed: int = 1) -> QueryFeatures:
    generator = torch.Generator().manual_seed(seed)
    return QueryFeatures(*(torch.randn(rows, FEATURES, generator=generator) for _ in range(3)))


def reference_expert(expert: LowRankExpert) -> reference.ReferenceExpert:
    return reference.ReferenceExpert(
        reference.matrix(expert.u),
        reference.matrix(expert.v),
        expert.visual_feature.double().tolist(),
        expert.prompt_feature.double().tolist(),
    )


def routed(*arguments: object) -> Routing:
    found = route(*arguments)  # type: ignore[arg-type]
    assert found is not None, "nothing fired: the test would be vacuous"
    return found


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_routing_and_residual_are_equations_5_to_7(form: str) -> None:
    modules, experts, query = modules_of(form), experts_of(9), query_of()
    routing = routed(modules, query, EVERY, repository_of(experts))
    plain = {name: reference_expert(expert) for name, expert in experts.items()}
    scales = (1 / math.sqrt(8),) * 2 if form == "paper" else (math.exp(0.7), math.exp(0.4))
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    residual = expert_residual(states, routing.u, routing.v, routing.weights, modules.config)
    counts = []
    for row in range(3):
        weights = reference.fire(
            query.visual[row].double().tolist(),
            query.sentinel[row].double().tolist(),
            query.prompt[row].double().tolist(),
            plain,
            *scales,
            prompt_offset=0.0 if form == "paper" else 0.3,
        )
        found = {fired.edit_id: fired.weight for fired in routing.fired[row]}
        assert found == pytest.approx(weights, rel=1e-4)
        counts.append(len(found))
        edited = reference.edited_states(
            reference.matrix(states[row]),
            plain,
            weights,
            normed=form == "improved",
            scale=1.0 if form == "paper" else 1 / (5 * math.sqrt(2)),
        )
        torch.testing.assert_close((states + residual)[row], torch.tensor(edited), atol=1e-4, rtol=1e-4)
    assert 0 < sum(counts) < 3 * len(experts), "all or none passed: hard routing was not tested"


@pytest.mark.parametrize("form", ["paper", "improved"])
@pytest.mark.parametrize(
    ("changes", "weigh"),
    [
        ({"soft_factors": "absolute"}, lambda scores: [reference.sigmoid(score) for score in scores]),
        ({"soft_factors": "relative"}, reference.softmax),
        ({"soft_routing": False}, lambda scores: [1 / len(scores)] * len(scores)),
        ({"soft_routing": False, "soft_factors": "absolute"}, lambda scores: [1 / len(scores)] * len(scores)),
    ],
)
def test_weights_of_the_ablations(
    form: str, changes: dict[str, object], weigh: Callable[[list[float]], list[float]]
) -> None:
    """Table 2: one factor of equation 7 alone, or the plain mean of all that pass hard routing ("- SR")."""
    experts, query = experts_of(9), query_of()
    whole = routed(modules_of(form), query, EVERY, repository_of(experts))
    found = routed(modules_of(form, **changes), query, EVERY, repository_of(experts))
    scale, offset = (1 / math.sqrt(8), 0.0) if form == "paper" else (math.exp(0.4), 0.3)
    for row in range(3):
        passed = [fired.edit_id for fired in whole.fired[row]]
        assert [fired.edit_id for fired in found.fired[row]] == passed, "hard routing is another"
        scores = [float(query.prompt[row] @ experts[name].prompt_feature) * scale - offset for name in passed]
        assert [fired.weight for fired in found.fired[row]] == pytest.approx(weigh(scores), rel=1e-4)
        assert found.weights[row, : len(passed)].tolist() == pytest.approx(weigh(scores), rel=1e-4)


def test_margins_tell_by_how_much_an_expert_passed() -> None:
    modules, experts, query = modules_of(), experts_of(9), query_of()
    routing = routed(modules, query, EVERY, repository_of(experts))
    for row, fired in enumerate(routing.fired):
        for one in fired:
            gap = query.visual[row] @ (experts[one.edit_id].visual_feature - query.sentinel[row])
            assert one.margin == pytest.approx(float(gap) * math.exp(0.7), rel=1e-4)
            assert one.margin > 0


def test_soft_weights_of_one_expert_are_its_sigmoid() -> None:
    scores = torch.tensor([[2.0, -math.inf], [-3.0, -math.inf]])
    torch.testing.assert_close(soft_weights(scores)[:, 0], torch.tensor([2.0, -3.0]).sigmoid())


def test_soft_weights_sum_to_less_than_one() -> None:
    scores = 5 * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    weights = soft_weights(scores)
    assert (weights >= 0).all()
    assert (weights.sum(-1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("weighting", ["absolute", "relative", "equal"])
def test_soft_weights_of_one_factor_and_of_none(weighting: Weighting) -> None:
    scores = torch.tensor([[1.0, -math.inf, 0.5, 2.0], [-math.inf] * 4])
    plain = [1.0, 0.5, 2.0]
    wanted = {
        "absolute": [reference.sigmoid(score) for score in plain],
        "relative": reference.softmax(plain),
        "equal": [1 / 3] * 3,
    }[weighting]
    found = soft_weights(scores, weighting)
    assert found[0, [0, 2, 3]].tolist() == pytest.approx(wanted)
    assert found[0, 1] == 0
    assert not found[1].any()


def test_soft_weights_ignore_experts_that_did_not_pass() -> None:
    scores = torch.tensor([1.0, -math.inf, 0.5, -math.inf])
    weights = soft_weights(scores)
    assert weights[1] == weights[3] == 0
    assert torch.equal(weights[[0, 2]], soft_weights(scores[[0, 2]]))


def test_soft_weights_of_nobody_are_zero() -> None:
    assert torch.equal(soft_weights(torch.full((2, 3), -math.inf)), torch.zeros(2, 3))


def test_soft_weights_have_gradients_where_somebody_passed() -> None:
    scores = torch.tensor([[0.3, -math.inf, -0.2], [-math.inf, -math.inf, -math.inf]], requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_weights(scores).sum(), scores)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, [0, 2]] != 0).all()


def test_an_empty_repository_routes_to_nothing() -> None:
    assert route(modules_of(), query_of(), EVERY, ExpertRepository()) is None


def test_nobody_above_the_sentinel_routes_to_nothing() -> None:
    query = query_of()
    away, prompt = -100 * query.visual.sum(0), query.prompt[0]
    opposite = LowRankExpert(torch.ones(2, WIDTH), torch.ones(2, WIDTH), away, prompt, away)
    repository = repository_of({"opposite": opposite})
    reached = QueryFeatures(query.visual[:1], query.visual[:1], query.prompt[:1])
    assert route(modules_of(), reached, EVERY[:1], repository) is None


def test_unreachable_queries_are_left_alone() -> None:
    modules, repository, query = modules_of(), repository_of(experts_of(9)), query_of()
    everyone = routed(modules, query, EVERY, repository)
    assert all(everyone.fired)
    some = routed(modules, query, torch.tensor([True, False, True]), repository)
    assert some.fired[1] == () and not some.weights[1].any()
    assert some.fired[0] == everyone.fired[0]
    assert route(modules, query, ~EVERY, repository) is None


def bits(routing: Routing) -> tuple[bytes, ...]:
    """Everything that matters of a routing: what fills up shorter rows has weight 0."""
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))[: len(routing.weights)]
    config = modules_of().config
    residual = expert_residual(states, routing.u, routing.v, routing.weights, config)
    present = (routing.weights > 0)[..., None, None]
    filled = (torch.where(present, part, 0.0) for part in (routing.u, routing.v))
    tensors = (residual, routing.weights, *filled)
    return (*(tensor.contiguous().numpy().tobytes() for tensor in tensors), repr(routing.fired).encode())


@pytest.mark.parametrize("count", [12, 600])
@pytest.mark.parametrize("top", [None, 4])
@pytest.mark.parametrize("changes", [{}, {"soft_factors": "absolute"}, {"soft_routing": False}])
def test_the_order_of_edits_does_not_change_a_bit(count: int, top: int | None, changes: dict[str, object]) -> None:
    modules, experts, query = modules_of(top_experts=top, **changes), experts_of(count), query_of()
    names = list(experts)
    first = routed(modules, query, EVERY, repository_of(experts))
    if count > 256:
        exact = routed(modules_of(top_experts=None), query, EVERY, repository_of(experts))
        assert max(map(len, exact.fired)) > 256, "the product path was not taken"
    backwards = routed(modules, query, EVERY, repository_of(experts, names[::-1]))
    churned = repository_of({**experts_of(3, seed=9), **{f"x-{name}": experts[name] for name in names}})
    churned.clear()
    for name in [*names[5:], *names[:5]]:
        churned.add(name, experts[name])
    for index, extra in enumerate(experts_of(3, seed=9).values()):
        churned.add(f"passing-{index}", extra)
    for index in (0, 2, 1):
        churned.remove(f"passing-{index}")
    churned.remove(names[3])
    churned.add(names[3], experts[names[3]])
    assert bits(first) == bits(backwards) == bits(routed(modules, query, EVERY, churned))


def near_ties(query: QueryFeatures, count: int) -> dict[str, LowRankExpert]:
    """Experts whose similarity is the sentinel's up to rounding: some a little above, some below, some the same."""
    generator = torch.Generator().manual_seed(3)
    bar, sentinel = query.visual[0].double(), query.sentinel[0].double()
    found = {}
    for number in range(count):
        aside = torch.randn(len(bar), generator=generator, dtype=torch.float64)
        aside -= bar * (aside @ bar) / (bar @ bar)
        visual = (sentinel + aside).float() if number % 10 else query.sentinel[0]
        others = torch.randn(3, len(bar), generator=generator)
        factors = others[:2, None].expand(2, 2, -1)[..., :WIDTH]
        found[f"edit-{number}"] = LowRankExpert(factors[0], factors[1], visual, others[2], others[2])
    return found


@pytest.mark.parametrize("experts_on", ["device", "host"])
@pytest.mark.parametrize("first_rows", [1, 5, 64, 1024])
def test_who_passes_by_a_hair_passes_wherever_it_lies(
    first_rows: int, experts_on: ExpertsOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products with many keys at once round by how many there are, and 8-bit copies are rougher: neither may decide."""
    monkeypatch.setattr(blocks, "FIRST_ROWS", first_rows)
    for largest in ("LARGEST_BLOCK_BYTES", "LARGEST_FILE_BYTES"):
        monkeypatch.setattr(blocks, largest, 1)
    generator = torch.Generator().manual_seed(5)
    query = QueryFeatures(*(torch.randn(1, 192, generator=generator) for _ in range(3)))
    experts = near_ties(query, 150)
    exact = {
        name: float(query.visual[0].double() @ (it.visual_feature.double() - query.sentinel[0].double())) > 0
        for name, it in experts.items()
    }
    assert 30 < sum(exact.values()) < 120 and not exact["edit-0"]
    plain = query.visual[0] @ torch.stack([it.visual_feature for it in experts.values()]).T
    by_product = plain > (query.visual[0] * query.sentinel[0]).sum()
    assert by_product.tolist() != list(exact.values()), "rounding decides nothing here: the test is vacuous"
    for order in (list(experts), list(experts)[::-1]):
        repository = repository_of(experts, order, experts_on)
        passed = hard_routed(query, EVERY[:1], repository)[0].tolist()
        assert dict(zip(repository.ids, passed, strict=True)) == exact


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_lower_precision_change_no_decision(precision: str) -> None:
    generator = torch.Generator().manual_seed(5)
    query = QueryFeatures(*(torch.randn(1, 192, generator=generator) for _ in range(3)))
    repository = repository_of(near_ties(query, 150))
    before = hard_routed(query, EVERY[:1], repository)
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(hard_routed(query, EVERY[:1], repository), before)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("experts_on", ["device", "host"])
@pytest.mark.parametrize("first_rows", [3, 100])
def test_blocks_and_where_they_lie_do_not_change_a_bit(
    experts_on: ExpertsOn, first_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, query, modules = experts_of(600), query_of(), modules_of(top_experts=40)
    first = routed(modules, query, EVERY, repository_of(experts))
    monkeypatch.setattr(blocks, "FIRST_ROWS", first_rows)
    for largest in ("LARGEST_BLOCK_BYTES", "LARGEST_FILE_BYTES"):
        monkeypatch.setattr(blocks, largest, 1)
    other = repository_of(experts, list(experts)[::-1], experts_on)
    assert bits(first) == bits(routed(modules, query, EVERY, other))


def test_edits_that_ask_the_same_are_told_apart_by_their_digests_whatever_the_order() -> None:
    """With the same prompt feature their weights are equal: at the bound, who is kept must not hinge on the order."""
    query, alike = query_of(1), experts_of(40)
    shared = 100 * query.visual[0]
    experts = {name: LowRankExpert(it.u, it.v, shared, query.prompt[0], shared) for name, it in alike.items()}
    best = LowRankExpert(experts["edit-0"].u, experts["edit-0"].v, shared, 2 * query.prompt[0], shared)
    experts["edit-0"] = best
    found = [
        routed(modules_of(top_experts=4), query, EVERY[:1], repository_of(experts, order))
        for order in (list(experts), list(experts)[::-1])
    ]
    assert bits(found[0]) == bits(found[1])
    first = sorted((name for name in experts if name != "edit-0"), key=lambda name: experts[name].digest)[:3]
    assert {fired.edit_id for fired in found[0].fired[0]} == {"edit-0", *first}


def test_the_same_expert_twice_fires_under_both_ids() -> None:
    modules, query, expert = modules_of(), query_of(1), next(iter(experts_of(1).values()))
    twice = LowRankExpert(expert.u, expert.v, 100 * query.visual[0], expert.prompt_feature, query.visual[0])
    first = routed(modules, query, EVERY[:1], repository_of({"a": twice, "b": twice}))
    second = routed(modules, query, EVERY[:1], repository_of({"a": twice, "b": twice}, ["b", "a"]))
    assert bits(first) == bits(second)
    assert [fired.edit_id for fired in first.fired[0]] == ["a", "b"]


def test_bounded_mode_keeps_the_largest_weights_and_says_what_it_dropped() -> None:
    experts, query = experts_of(40), query_of()
    exact = routed(modules_of(top_experts=None), query, EVERY, repository_of(experts))
    bounded = routed(modules_of(top_experts=4), query, EVERY, repository_of(experts))
    assert exact.dropped_weight == (0.0, 0.0, 0.0)
    for row in range(3):
        everyone = {fired.edit_id: fired.weight for fired in exact.fired[row]}
        kept = {fired.edit_id: fired.weight for fired in bounded.fired[row]}
        assert len(kept) == min(4, len(everyone))
        assert set(kept) == set(sorted(everyone, key=everyone.__getitem__, reverse=True)[:4])
        assert kept == {name: everyone[name] for name in kept}
        dropped = math.fsum(everyone.values()) - math.fsum(kept.values())
        assert bounded.dropped_weight[row] == pytest.approx(dropped, abs=1e-6)
    assert max(bounded.dropped_weight) > 0, "nothing was dropped: the bound was not tested"


def test_without_soft_routing_the_bound_keeps_the_nearest_pictures() -> None:
    experts, query = experts_of(40), query_of()
    exact = routed(modules_of(top_experts=None, soft_routing=False), query, EVERY, repository_of(experts))
    bounded = routed(modules_of(top_experts=4, soft_routing=False), query, EVERY, repository_of(experts))
    for row in range(3):
        margins = {fired.edit_id: fired.margin for fired in exact.fired[row]}
        assert len(margins) > 4, "nothing was dropped: the bound was not tested"
        kept = {fired.edit_id: fired.weight for fired in bounded.fired[row]}
        assert set(kept) == set(sorted(margins, key=margins.__getitem__, reverse=True)[:4])
        assert list(kept.values()) == pytest.approx([1 / len(margins)] * 4)
        assert bounded.dropped_weight[row] == pytest.approx(1 - 4 / len(margins), abs=1e-6)


def test_equal_margins_are_told_apart_by_the_digests_whatever_the_order() -> None:
    """Two questions about one picture have the same margin where the prompt does not decide what is looked at."""
    query, alike = query_of(1), experts_of(6)
    shared = 100 * query.visual[0]
    experts = {name: LowRankExpert(it.u, it.v, shared, it.prompt_feature, shared) for name, it in alike.items()}
    modules = modules_of(top_experts=2, soft_routing=False)
    found = [
        routed(modules, query, EVERY[:1], repository_of(experts, order))
        for order in (list(experts), list(experts)[::-1])
    ]
    assert bits(found[0]) == bits(found[1])
    first = sorted(experts, key=lambda name: experts[name].digest)[:2]
    assert {fired.edit_id for fired in found[0].fired[0]} == set(first)


def test_the_dropped_weight_bounds_the_change_of_the_residual() -> None:
    """|residual - bounded residual| <= dropped weight x the largest single expert's output."""
    experts, query = experts_of(40), query_of()
    config = modules_of().config
    exact = routed(modules_of(top_experts=None), query, EVERY, repository_of(experts))
    bounded = routed(modules_of(top_experts=4), query, EVERY, repository_of(experts))
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    residuals = [expert_residual(states, it.u, it.v, it.weights, config) for it in (exact, bounded)]
    change = (residuals[0] - residuals[1]).norm(dim=-1).amax(-1)
    alone = [
        expert_residual(states, expert.u[None], expert.v[None], torch.ones(3, 1), config).norm(dim=-1)
        for expert in experts.values()
    ]
    largest = torch.stack(alone).amax((0, 2))
    assert change.max() > 0
    assert (change <= torch.tensor(bounded.dropped_weight) * largest + 1e-5).all()


def test_a_row_with_fewer_experts_is_not_disturbed_by_the_others() -> None:
    modules, experts, query = modules_of(), experts_of(9), query_of()
    repository = repository_of(experts)
    together = routed(modules, query, EVERY, repository)
    counts = [len(fired) for fired in together.fired]
    assert len(set(counts)) > 1, "all rows have as many experts: filling up was not tested"
    states = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    whole = expert_residual(states, together.u, together.v, together.weights, modules.config)
    for row in range(3):
        one = QueryFeatures(query.visual[row, None], query.sentinel[row, None], query.prompt[row, None])
        alone = routed(modules, one, EVERY[:1], repository)
        assert [fired.edit_id for fired in alone.fired[0]] == [f.edit_id for f in together.fired[row]]
        residual = expert_residual(states[row, None], alone.u, alone.v, alone.weights, modules.config)
        torch.testing.assert_close(residual[0], whole[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("residual_tokens", "expected"),
    [
        # text, image, image, text, image, text, text, padding
        ("text", [[0, 0, 0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
        ("all", [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
    ],
)
def test_text_before_the_image_is_changed_only_with_all_tokens(residual_tokens: str, expected: list[list[int]]) -> None:
    roles = torch.tensor([[0, 1, 1, 0, 1, 0, 0, -1], [0, 0, 0, -1, -1, -1, -1, -1]])
    tokens = TokenBatch(roles, torch.zeros_like(roles))
    changed = changed_tokens(tokens, modules_of(residual_tokens=residual_tokens).config)
    assert changed.int().tolist() == expected


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        # image, prompt, prompt, answer, answer, padding
        ([1, 0, 0, 2, 2, -1], [0, 0, 1, 1, 1, 0]),
        # padding, prompt, image, prompt: a question alone, left-padded
        ([-1, 0, 1, 0], [0, 0, 0, 1]),
    ],
)
def test_experts_may_change_the_last_token_of_the_prompt_and_the_answer_alone(
    roles: list[int], expected: list[int]
) -> None:
    class Form:
        rank, expert_input, expert_scale, residual_tokens = 4, "normed", "none", "answer"

    rows = torch.tensor([roles])
    changed = changed_tokens(TokenBatch(rows, torch.zeros_like(rows)), Form())
    assert changed.int().tolist() == [expected]


def test_shapes_in_signatures_are_checked_while_the_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        soft_weights(torch.ones(2, 3).int())  # type: ignore[arg-type]


# -- the nearest expert alone, and weights of 0 or 1 -----------------------------------------------------

NEAREST = Combining(combine="nearest")


def twins_of(query: QueryFeatures, count: int, apart: float, score: float = 5.0) -> dict[str, LowRankExpert]:
    """Experts that all pass both routers for the first query, and whose own questions differ by about `apart`."""
    visual, prompt = query.visual[0], query.prompt[0]
    away = apart * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(4))
    return {
        name: LowRankExpert(it.u, it.v, 100 * visual, score * prompt / prompt.norm() ** 2, visual + shift)
        for shift, (name, it) in zip(away, experts_of(count).items(), strict=True)
    }


def asked_by(query: QueryFeatures, expert: LowRankExpert) -> QueryFeatures:
    return replace(query, visual=expert.query_feature[None])


def fired_of(routing: Routing) -> list[list[str]]:
    return [[fired.edit_id for fired in row] for row in routing.fired]


@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_each_question_finds_its_own_edit_among_twins(apart: float) -> None:
    modules, query = modules_of(), query_of(1)
    experts = twins_of(query, 20, apart)
    repository = repository_of(experts)
    for name, expert in experts.items():
        asked = asked_by(query, expert)
        assert len(routed(modules, asked, EVERY[:1], repository).fired[0]) == 20, "the others do not pass"
        found = routed(modules, asked, EVERY[:1], repository, NEAREST)
        assert fired_of(found) == [[name]] and found.weights.shape == (1, 1)
        assert torch.equal(found.u[0, 0], expert.u) and torch.equal(found.v[0, 0], expert.v)
        alone = routed(modules, asked, EVERY[:1], repository_of({name: expert}), NEAREST)
        assert bits(found) == bits(alone), "as if it had passed alone"


def test_every_query_of_a_batch_has_its_own_nearest_expert() -> None:
    modules, query = modules_of(), query_of(1)
    experts = twins_of(query, 3, 0.1)
    own = torch.stack([expert.query_feature for expert in experts.values()])
    batch = QueryFeatures(own, query.sentinel.expand(3, -1), query.prompt.expand(3, -1))
    found = routed(modules, batch, EVERY, repository_of(experts), NEAREST)
    assert fired_of(found) == [[name] for name in experts]
    one = routed(modules, batch, torch.tensor([True, False, True]), repository_of(experts), NEAREST)
    assert fired_of(one) == [["edit-0"], [], ["edit-2"]] and not one.weights[1].any()


def test_the_newest_of_equal_questions_counts_whatever_comes_and_goes_beside_it() -> None:
    modules, query = modules_of(), query_of(1)
    experts = twins_of(query, 12, 0.1)
    for name in ("edit-3", "edit-8"):
        experts[name] = replace(experts[name], query_feature=query.visual[0])
    repository = repository_of(experts)

    def found() -> list[list[str]]:
        return fired_of(routed(modules, query, EVERY[:1], repository, NEAREST))

    assert found() == [["edit-8"]]
    for name in ("edit-0", "edit-11", "edit-5", "edit-1"):
        repository.remove(name)
        assert found() == [["edit-8"]]
    repository.add("edit-0", experts["edit-0"])
    assert found() == [["edit-8"]]
    repository.remove("edit-3")
    repository.add("edit-3", experts["edit-3"])
    assert found() == [["edit-3"]], "added last"
    repository.number({"edit-3": 3, "edit-8": 8})
    assert found() == [["edit-8"]], "made last"
    repository.remove("edit-8")
    assert found() == [["edit-3"]]


def test_an_expert_that_asks_for_something_else_is_no_nearest_one() -> None:
    """Its own question is nearer, but alone it would have a small weight. It counts only where no other passes."""
    modules, query = modules_of(), query_of(1)
    near, far = twins_of(query, 2, 1.0).values()
    prompt = query.prompt[0]
    near = replace(near, query_feature=query.visual[0], prompt_feature=-2 * prompt / prompt.norm() ** 2)
    found = routed(modules, query, EVERY[:1], repository_of({"near": near, "far": far}), NEAREST)
    assert fired_of(found) == [["far"]] and found.fired[0][0].weight > 0.5
    alone = routed(modules, query, EVERY[:1], repository_of({"near": near}), NEAREST)
    assert fired_of(alone) == [["near"]] and 0 < alone.fired[0][0].weight < 0.5


def test_a_threshold_makes_weights_one_or_leaves_the_expert_out() -> None:
    modules, experts, query = modules_of(), experts_of(9), query_of()
    plain = routed(modules, query, EVERY, repository_of(experts))
    weights = sorted(fired.weight for row in plain.fired for fired in row)
    threshold = weights[len(weights) // 2]
    assert 0 < weights[0] < threshold < 1
    found = routed(modules, query, EVERY, repository_of(experts), Combining(weight_threshold=threshold))
    for before, after in zip(plain.fired, found.fired, strict=True):
        assert [one.edit_id for one in after] == [one.edit_id for one in before if one.weight >= threshold]
        assert all(one.weight == 1.0 for one in after)
    assert set(found.weights.flatten().tolist()) == {0.0, 1.0}
    assert all(dropped == 0 for dropped in found.dropped_weight)
    above_all = torch.nextafter(torch.tensor(weights[-1]), torch.tensor(2.0)).item()
    assert route(modules, query, EVERY, repository_of(experts), Combining(weight_threshold=above_all)) is None


def test_a_factor_scales_weights_before_the_threshold() -> None:
    modules, query = modules_of(), query_of(1)
    repository = repository_of(twins_of(query, 1, 0.1))
    (plain,) = routed(modules, query, EVERY[:1], repository).weights.flatten().tolist()
    assert 0.9 < plain < 1
    for factor in (1.0, 0.6, 0.0):
        scaled = routed(modules, query, EVERY[:1], repository, Combining(), factor)
        assert scaled.weights.item() == pytest.approx(factor * plain) == scaled.fired[0][0].weight
    hard = Combining(weight_threshold=0.5)
    assert routed(modules, query, EVERY[:1], repository, hard, 0.6).weights.item() == 1.0
    assert route(modules, query, EVERY[:1], repository, hard, 0.5) is None


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_the_sum_is_equations_5_to_7_to_the_bit(form: str) -> None:
    """What passes, by products alone; each weight from scores that are computed one by one."""
    modules, experts, query = modules_of(form), experts_of(9), query_of()
    found = routed(modules, query, EVERY, repository_of(experts), Combining(combine="sum"))
    for row in range(3):
        order = sorted(experts, key=lambda name: experts[name].digest)
        gap = {name: query.visual[row] @ (experts[name].visual_feature - query.sentinel[row]) for name in order}
        passed = [name for name in order if gap[name] > 0]
        scores = torch.stack([modules.prompt_score(query.prompt[row], experts[name].prompt_feature) for name in passed])
        shares = (scores - scores.max()).exp()
        total = (shares.double() * 2**40).round().sum() / 2**40
        weights = shares / total.float() / (1 + (-scores).exp())
        assert [fired.edit_id for fired in found.fired[row]] == passed
        assert torch.equal(found.weights[row, : len(passed)], weights)
        for place, name in enumerate(passed):
            assert torch.equal(found.u[row, place], experts[name].u)
            assert torch.equal(found.v[row, place], experts[name].v)
