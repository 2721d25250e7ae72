"""Generator and extractors against slow reference loops; what does not count must not count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reference
import torch

from liveedit.backbones import HiddenTokens, TokenRole
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.errors import ConfigError

WIDTH, IMAGE, LENGTH = 12, 3, 10
FLOAT32 = 2e-6
"""Features are handed out in float32, whatever the modules compute in."""
SIZES = {"width": WIDTH, "layer": 0, "image_tokens": IMAGE, "module_width": 8, "rank": 2, "feature_parts": 2}


def config_of(form: str, **changes: object) -> LiveEditConfig:
    if form == "paper":
        return LiveEditConfig.paper(**{**SIZES, "value_start": None, **changes})  # type: ignore[arg-type]
    return LiveEditConfig.create(**{**SIZES, "heads": 2, "answer_slots": 3, **changes})


def modules_of(config: LiveEditConfig, seed: int = 0) -> LiveEditModules:
    torch.manual_seed(seed)
    modules = LiveEditModules(config)
    with torch.no_grad():  # Norms start as the identity: give them something to do.
        for name, parameter in modules.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return modules.double().eval()


def batch_of(seed: int = 0) -> HiddenTokens:
    """Three rows of different lengths: (image tokens, prompt tokens, answer tokens), padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    roles = torch.full((3, LENGTH), TokenRole.PADDING)
    for row, (image, prompt, answer) in enumerate([(IMAGE, 4, 2), (IMAGE, 3, 4), (IMAGE, 2, 1)]):
        ends = torch.tensor([image, prompt, answer]).cumsum(0)
        roles[row, : ends[0]] = TokenRole.IMAGE
        roles[row, ends[0] : ends[1]] = TokenRole.PROMPT
        roles[row, ends[1] : ends[2]] = TokenRole.ANSWER
    states, embeddings = (torch.randn(3, LENGTH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = torch.zeros_like(roles)
    return HiddenTokens(roles, ids, hidden_states=states, word_embeddings=embeddings)


def tokens_at(tokens: torch.Tensor, mask: torch.Tensor) -> reference.Matrix:
    return tokens[mask].tolist()


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_features_are_equation_3(form: str) -> None:
    modules, batch = modules_of(config_of(form)), batch_of()
    weights = reference.part_of(modules.state_dict(), "hat")
    visual, prompt = modules.edit_features(batch)
    for row in range(3):
        image = tokens_at(batch.hidden_states[row], batch.image_mask[row])
        asked = tokens_at(batch.hidden_states[row], batch.prompt_mask[row])
        phi, psi = reference.extract_features(
            weights, image, asked, modules.config.heads, unit_length=form == "improved"
        )
        assert visual[row].tolist() == pytest.approx(phi, abs=FLOAT32)
        assert prompt[row].tolist() == pytest.approx(psi, abs=FLOAT32)


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_query_features_are_equations_4_and_5(form: str) -> None:
    modules, batch = modules_of(config_of(form)), batch_of()
    weights = reference.part_of(modules.state_dict(), "bar")
    query = modules.query(batch)
    for row in range(3):
        image = tokens_at(batch.hidden_states[row], batch.image_mask[row])
        asked = tokens_at(batch.hidden_states[row], batch.prompt_mask[row])
        options = {"heads": modules.config.heads, "unit_length": form == "improved"}
        phi, psi = reference.extract_features(weights, image, asked, **options)  # type: ignore[arg-type]
        theta, _ = reference.extract_features(
            weights,
            reference.matrix(modules.sentinel.detach()),
            asked,
            **options,  # type: ignore[arg-type]
        )
        assert query.visual[row].tolist() == pytest.approx(phi, abs=FLOAT32)
        assert query.prompt[row].tolist() == pytest.approx(psi, abs=FLOAT32)
        assert query.sentinel[row].tolist() == pytest.approx(theta, abs=FLOAT32)


@pytest.mark.parametrize(
    ("form", "source"),
    [("paper", "states"), ("improved", "states"), ("improved", "embeddings"), ("improved", "both")],
)
def test_experts_are_equation_1(form: str, source: str) -> None:
    modules, batch = modules_of(config_of(form, answer_source=source)), batch_of()
    weights = reference.part_of(modules.state_dict(), "generator")
    made = modules.edit(batch)
    for row in range(3):
        kinds = batch.image_mask[row] | batch.prompt_mask[row]
        if source != "embeddings":
            kinds = kinds | batch.answer_mask[row]
        sources = [tokens_at(batch.hidden_states[row], kinds)]
        if source != "states":
            answer = tokens_at(batch.embeddings[row], batch.answer_mask[row])
            sources.append(reference.slotted_answer(weights, answer, modules.config.answer_slots))
        u, v = reference.generate_expert(weights, sources, modules.config.heads)
        torch.testing.assert_close(made.u[row], torch.tensor(u, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(made.v[row], torch.tensor(v, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_without_the_prompt_the_picture_is_read_as_a_whole(form: str) -> None:
    """HR* of table 2: phi = CA_phi2(phi0, h_v), against the loops."""
    modules, batch = modules_of(config_of(form, hard_prompt=False)), batch_of()
    config = modules.config
    assert not [name for name in modules.state_dict() if "phi1" in name]
    visual, _ = modules.edit_features(batch)
    query = modules.query(batch)

    def phi(side: str, image: reference.Matrix) -> reference.Vector:
        weights = reference.part_of(modules.state_dict(), side)
        start = reference.matrix(weights["phi0"])
        read = reference.cross_attention(start, [image], reference.part_of(weights, "attend_phi2"), config.heads)
        flat = [value for row in read for value in row]
        length = math.sqrt(reference.dot(flat, flat)) if form == "improved" else 1.0
        return [value / length for value in flat]

    for row in range(3):
        image = tokens_at(batch.hidden_states[row], batch.image_mask[row])
        assert visual[row].tolist() == pytest.approx(phi("hat", image), abs=FLOAT32)
        assert query.visual[row].tolist() == pytest.approx(phi("bar", image), abs=FLOAT32)
        theta = phi("bar", reference.matrix(modules.sentinel.detach()))
        assert query.sentinel[row].tolist() == pytest.approx(theta, abs=FLOAT32)


@pytest.mark.parametrize("asked", [True, False])
def test_the_prompt_moves_the_visual_feature_only_where_it_is_asked(asked: bool) -> None:
    modules, batch = modules_of(config_of("improved", hard_prompt=asked)), batch_of()
    other = replace(
        batch, hidden_states=torch.where(batch.prompt_mask[..., None], batch.hidden_states.flip(0), batch.hidden_states)
    )
    before, after = modules.query(batch), modules.query(other)
    assert torch.equal(before.visual, after.visual) is not asked
    assert torch.equal(before.sentinel, after.sentinel) is not asked
    assert not torch.equal(before.prompt, after.prompt)


def everything_of(modules: LiveEditModules, batch: HiddenTokens) -> list[torch.Tensor]:
    made, query = modules.edit(batch), modules.query(batch)
    return [made.u, made.v, made.visual, made.prompt, query.visual, query.sentinel, query.prompt]


@pytest.mark.parametrize("form", ["paper", "improved"])
@pytest.mark.parametrize("hard_prompt", [True, False])
def test_padding_never_matters(form: str, hard_prompt: bool) -> None:
    modules, batch = modules_of(config_of(form, hard_prompt=hard_prompt)), batch_of()
    padding = ~(batch.image_mask | batch.prompt_mask | batch.answer_mask)
    assert padding.any()
    garbage = torch.full_like(batch.hidden_states, 1e4)
    spoiled = replace(
        batch,
        hidden_states=torch.where(padding[..., None], garbage, batch.hidden_states),
        word_embeddings=torch.where(padding[..., None], -garbage, batch.embeddings),
    )
    for clean, other in zip(everything_of(modules, batch), everything_of(modules, spoiled), strict=True):
        torch.testing.assert_close(clean, other, atol=0, rtol=0)


@pytest.mark.parametrize("form", ["paper", "improved"])
def test_left_and_right_padding_give_the_same(form: str) -> None:
    modules, batch = modules_of(config_of(form)), batch_of()
    seen = batch.image_mask | batch.prompt_mask | batch.answer_mask
    order = torch.argsort(seen.int(), dim=1, stable=True)  # Padding first, tokens behind it in their order.

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        index = order if tensor.ndim == 2 else order[..., None].expand_as(tensor)
        return tensor.gather(1, index)

    left = replace(
        batch,
        roles=moved(batch.roles),
        hidden_states=moved(batch.hidden_states),
        word_embeddings=moved(batch.embeddings),
    )
    assert not torch.equal(left.image_mask, batch.image_mask)
    for right, other in zip(everything_of(modules, batch), everything_of(modules, left), strict=True):
        torch.testing.assert_close(right, other, atol=FLOAT32, rtol=0)


def test_an_untrained_v_can_start_as_a_mean_of_the_states() -> None:
    config = config_of("paper", value_start=0.2)
    torch.manual_seed(0)
    generator, batch = LiveEditModules(config).double().generator, batch_of()
    _, v = generator(batch)
    shares = generator.attend_v.weights(
        generator.v0[None].expand(3, -1, -1), [(batch.hidden_states, batch.roles != TokenRole.PADDING)]
    )
    torch.testing.assert_close(v, 0.2 * shares[:, 0] @ batch.hidden_states)
    assert LiveEditConfig.paper(**SIZES).value_start == 0.2  # type: ignore[arg-type]


def test_the_answer_is_not_part_of_routing() -> None:
    modules, batch = modules_of(config_of("improved")), batch_of()
    other = replace(batch, hidden_states=torch.where(batch.answer_mask[..., None], 5.0, batch.hidden_states))
    for before, after in zip(everything_of(modules, batch)[2:], everything_of(modules, other)[2:], strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(modules.edit(batch).u, modules.edit(other).u)


def test_an_answer_in_another_order_gives_another_expert() -> None:
    modules, batch = modules_of(config_of("improved", answer_source="embeddings")), batch_of()
    places = batch.answer_mask[1].nonzero().flatten()
    swapped = batch.embeddings.clone()
    swapped[1, places] = batch.embeddings[1, places.flip(0)]
    assert not torch.allclose(modules.edit(batch).u[1], modules.edit(replace(batch, word_embeddings=swapped)).u[1])


def test_similarities_of_the_paper_are_scaled_by_the_module_width() -> None:
    modules = modules_of(config_of("paper"))
    a, b = torch.randn(2, 16, dtype=torch.float64).unbind()
    assert float(modules.visual_score(a, b)) == pytest.approx(float(a @ b) / math.sqrt(8))
    assert float(modules.prompt_score(a, b)) == pytest.approx(float(a @ b) / math.sqrt(8))


def test_a_set_of_features_averages_its_similarities() -> None:
    modules = modules_of(config_of("paper", features="set"))
    a, b = torch.randn(2, 2, 8, dtype=torch.float64).unbind()
    mean = sum(float(x @ y) / math.sqrt(8) for x, y in zip(a, b, strict=True)) / 2
    assert float(modules.visual_score(a.flatten(), b.flatten())) == pytest.approx(mean)


def test_sizes_of_the_paper_give_the_papers_store_bytes() -> None:
    config = LiveEditConfig.paper(width=4096, layer=20, image_tokens=576)
    numbers = 2 * config.rank * config.width + 2 * config.feature_parts * 1024
    assert numbers == 40_960
    assert config.module_width == 1024


@pytest.mark.parametrize(
    "values",
    [
        {**SIZES, "heads": 3},
        {**SIZES, "rank": 0},
        {**SIZES, "colour": "red"},
        {**SIZES, "scope": "everything"},
        {"width": 12},
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LiveEditConfig.create(**values)
