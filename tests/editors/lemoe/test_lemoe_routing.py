"""KV anchor routing against a slow float64 reading of its equation; keys, thresholds, anchors, the gate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from liveedit.editors.lemoe import LemoeConfig
from liveedit.editors.lemoe.anchors import CentringMean, QueryEmbedding
from liveedit.editors.lemoe.routing import KeyRouter, TokenGate

ConfigMaker = Callable[..., LemoeConfig]
WIDTH = 6


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def router_for(config: LemoeConfig, batches: int = 3, edits: int = 2) -> tuple[KeyRouter, list[Tensor]]:
    """A router with this many experts, and the anchors of each."""
    router = KeyRouter(config, WIDTH, torch.device("cpu"), unit(4, WIDTH, seed=50))
    anchors = [unit(edits, WIDTH, seed=batch) for batch in range(batches)]
    for batch in anchors:
        router.insert(batch)
    return router, anchors


def shares_by_hand(router: KeyRouter, anchor: Tensor) -> list[float]:
    """softmax_i(k_i . W_up silu(W_down e) / sqrt(d_v)), number by number."""
    hidden = [float(row.double() @ anchor.double()) for row in router.down]
    active = torch.tensor([h / (1 + math.exp(-h)) for h in hidden], dtype=torch.double)
    value = [float(row.double() @ active) for row in router.up]
    scores = [sum(float(k) * v for k, v in zip(key, value, strict=True)) / math.sqrt(len(value)) for key in router.keys]
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def test_the_route_is_that_of_the_equation(lemoe_config: ConfigMaker) -> None:
    config = lemoe_config(null_expert="none", gate="softmax", top_k=2, routing_steps=3)
    router, _ = router_for(config)
    asked = unit(5, WIDTH, seed=77)
    route = router.route(asked)
    for row, anchor in enumerate(asked):
        shares = shares_by_hand(router, anchor)
        best = sorted(range(3), key=lambda expert: -shares[expert])[:2]
        assert route.experts[row].tolist() == best
        assert route.weights[row].tolist() == pytest.approx([shares[expert] for expert in best], rel=1e-4)


def test_renormalized_weights_sum_to_one(lemoe_config: ConfigMaker) -> None:
    router, _ = router_for(lemoe_config(null_expert="none", top_k=2, routing_steps=3))
    torch.testing.assert_close(router.route(unit(5, WIDTH, seed=77)).weights.sum(1), torch.ones(5))


@pytest.mark.parametrize("projection", ["fixed", "first_batch", "every_batch"])
@pytest.mark.parametrize("null_expert", ["none", "key", "threshold"])
def test_keys_learn_to_lead_every_anchor_to_its_expert(
    lemoe_config: ConfigMaker, projection: str, null_expert: str
) -> None:
    config = lemoe_config(projection=projection, null_expert=null_expert, anchor="text", replay=4)
    router, anchors = router_for(config, batches=4, edits=3)
    for expert, batch in enumerate(anchors):
        assert router.route(batch).experts.flatten().tolist() == [expert] * 3


def test_a_new_key_leaves_the_earlier_ones_as_they_are(lemoe_config: ConfigMaker) -> None:
    router, anchors = router_for(lemoe_config(), batches=2)
    kept = [part.clone() for part in (router.keys, router.down, router.up)]
    before = router.scores(anchors[0], router.keys[:2])
    router.insert(unit(2, WIDTH, seed=9))
    assert torch.equal(router.keys[:2], kept[0])
    assert torch.equal(router.down, kept[1])
    assert torch.equal(router.up, kept[2])
    assert torch.equal(router.scores(anchors[0], router.keys[:2]), before)


def test_retraining_the_projection_makes_earlier_values_drift(lemoe_config: ConfigMaker) -> None:
    for projection, drifts in (("first_batch", False), ("every_batch", True)):
        router, anchors = router_for(lemoe_config(projection=projection), batches=1)
        before = router.values(anchors[0])
        router.insert(unit(2, WIDTH, seed=9))
        assert torch.equal(router.values(anchors[0]), before) is not drifts


def test_below_the_threshold_no_expert_takes_part(lemoe_config: ConfigMaker) -> None:
    config = lemoe_config(anchor="text", text_threshold=0.9)
    router, anchors = router_for(config, batches=2, edits=1)
    other = F.normalize(unit(1, WIDTH, seed=5) - (unit(1, WIDTH, seed=5) @ anchors[0].T) * anchors[0], dim=1)
    for cosine, expert in ((0.95, 0), (0.85, -1)):
        asked = cosine * anchors[0] + math.sqrt(1 - cosine**2) * other
        route = router.route(asked)
        assert route.experts.tolist() == [[expert]]
        assert route.weights.tolist() == [[float(expert == 0)]]


def test_questions_with_and_without_pictures_have_their_own_thresholds(lemoe_config: ConfigMaker) -> None:
    config = lemoe_config(anchor="text+image", threshold=0.99, text_threshold=0.2)
    router = KeyRouter(config, WIDTH, torch.device("cpu"), torch.empty(0, WIDTH))
    text = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    has_image = torch.tensor([[0.8, 0, 0, 0.6, 0, 0]])
    router.insert(text)
    assert router.route(torch.tensor([[0.6, 0.8, 0, 0, 0, 0]])).experts.tolist() == [[0]]
    assert router.route(has_image).experts.tolist() == [[-1]]
    router.insert(has_image)
    assert router.route(has_image).experts.tolist() == [[1]]


def test_removing_an_expert_moves_later_ones_up(lemoe_config: ConfigMaker) -> None:
    router, anchors = router_for(lemoe_config())
    keys = router.keys.clone()
    router.remove(1)
    assert torch.equal(router.keys, keys[[0, 2]])
    assert router.owner.tolist() == [0, 0, 1, 1]
    assert router.route(anchors[2]).experts.tolist() == [[1], [1]]


def test_an_anchor_is_the_mean_of_prompt_and_picture_and_nothing_else(lemoe_config: ConfigMaker) -> None:
    embeddings = torch.tensor([[[9.0, 9], [1, 2], [3, 6], [5, 0], [7, 0], [float("inf"), 0]]])
    image = torch.tensor([[False, True, True, False, False, False]])
    prompt = torch.tensor([[False, False, False, True, True, False]])
    embedding = QueryEmbedding.of(embeddings, image, prompt)
    assert embedding.text.tolist() == [[6.0, 0.0]]
    assert embedding.image.tolist() == [[2.0, 4.0]]
    mean = CentringMean(torch.zeros(2), torch.tensor([6.0, -3.0]), torch.tensor([2.0, 0.0]))
    plain = mean.anchors(embedding, lemoe_config(anchor="text+image", centered=False))
    wanted = torch.tensor([[0.5, 0.0, 1 / math.sqrt(5), 2 / math.sqrt(5)]]) / math.sqrt(1.25)
    torch.testing.assert_close(plain, wanted)
    centred = mean.anchors(embedding, lemoe_config(anchor="text+image"))
    torch.testing.assert_close(centred, torch.tensor([[0.0, 0.5, 0.0, 1.0]]) / math.sqrt(1.25))
    torch.testing.assert_close(mean.anchors(embedding, lemoe_config(anchor="text")), torch.tensor([[0.0, 1.0]]))


def test_without_a_picture_an_anchor_is_its_text(lemoe_config: ConfigMaker) -> None:
    embedding = QueryEmbedding(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.tensor([False]))
    mean = CentringMean(torch.zeros(2), torch.ones(2), torch.ones(2))
    torch.testing.assert_close(
        mean.anchors(embedding, lemoe_config(anchor="text+image")), torch.tensor([[0.6, 0.8, 0, 0]])
    )


def test_a_state_is_read_at_the_last_token_of_the_prompt(lemoe_config: ConfigMaker) -> None:
    x = torch.tensor([[[9.0, 9], [1, 2], [3, 7], [5, 0]], [[0, 0], [0, 0], [2, 5], [8, 8]]])
    prompt = torch.tensor([[False, True, True, False], [True, True, True, False]])
    image = torch.tensor([[4.0, 3.0], [0.0, 0.0]])
    embedding = QueryEmbedding(torch.zeros(2, 2), image, torch.tensor([True, False])).with_states(x, prompt)
    assert embedding.text.tolist() == [[3.0, 7.0], [2.0, 5.0]]
    mean = CentringMean(text=torch.tensor([5.0, 1.0]), has_image=torch.tensor([3.0, 5.0]), image=torch.zeros(2))
    states = torch.tensor([[0.0, 1.0], [-0.6, 0.8]])
    torch.testing.assert_close(mean.anchors(embedding, lemoe_config(anchor="state")), states)
    beside = mean.anchors(embedding, lemoe_config(anchor="state+image", image_weight=0.75))
    torch.testing.assert_close(beside, torch.tensor([[0.0, 0.8, 0.48, 0.36], [-0.6, 0.8, 0.0, 0.0]]))


def test_least_similarity_is_that_of_the_anchors_or_the_given_one(lemoe_config: ConfigMaker) -> None:
    assert lemoe_config(anchor="state").least_similarity > lemoe_config(anchor="text").least_similarity
    assert lemoe_config(threshold=0.3, text_threshold=0.4).least_similarity == (0.3, 0.4)


def test_the_gate_weighs_every_token_by_itself(lemoe_config: ConfigMaker) -> None:
    gate = TokenGate(lemoe_config(routing="conventional", gate="softmax"), 2, torch.device("cpu"))
    gate.insert()
    gate.insert()
    gate.rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    route = gate.route(torch.tensor([[math.log(3), 0.0], [0.0, math.log(4)]]))
    assert route.experts.tolist() == [[0], [1]]
    assert route.weights.flatten().tolist() == pytest.approx([3 / 4, 4 / 5])


def test_keys_without_any_gradient_are_refused() -> None:
    with pytest.raises(ValidationError, match="without any gradient"):
        LemoeConfig(routing_steps=0)  # type: ignore[call-arg]
    assert LemoeConfig(routing_steps=0, gate="softmax").routing_steps == 0  # type: ignore[call-arg]
