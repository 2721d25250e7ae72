"""The networks, against a slow float64 reference that works token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from liveedit.editors.mend import MendConfig
from liveedit.editors.mend.factors import Factors
from liveedit.editors.mend.modules import MendModules, Statistics

SHAPES = (("1.up", 5, 7), ("1.down", 7, 5), ("2.up", 5, 7), ("2.down", 7, 5))


def config(**settings: float) -> MendConfig:
    return MendConfig.model_validate({"rank": 3, "edit_rate": 0.25, **settings})


def random_gradients(seed: int, cases: int = 2, tokens: int = 4) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.arange(tokens)[None] < torch.tensor([tokens, tokens - 2])[:cases, None]
    return [
        Factors(
            2 + 3 * torch.randn(cases, tokens, inputs, generator=generator),
            1e-3 * torch.randn(cases, tokens, outputs, generator=generator),
            kept,
        )
        for _, inputs, outputs in SHAPES
    ]


@pytest.fixture
def trained() -> MendModules:
    """Networks of random numbers, with statistics of two gatherings."""
    modules = MendModules(config(), SHAPES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in modules.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    modules.gather(random_gradients(3))
    modules.gather(random_gradients(4))
    return modules


def test_untrained_a_change_is_the_plain_gradient_step() -> None:
    gradients = random_gradients(1)
    for change, gradient in zip(MendModules(config(), SHAPES)(gradients), gradients, strict=True):
        torch.testing.assert_close(change.dense(), -0.25 * gradient.dense(), rtol=1e-6, atol=0)


def test_at_the_start_every_part_but_the_inner_maps_learns() -> None:
    """The networks start as the identity exactly where relu has no gradient: training must leave that point."""
    modules = MendModules(config(), SHAPES)
    sum(change.dense().square().sum() for change in modules(random_gradients(1))).backward()
    learning = {name for name, value in modules.named_parameters() if value.grad is not None and value.grad.any()}
    parts = {name.split(".")[2] for name in learning if name.startswith("networks")}
    assert parts == {"up", "bias", "shift"}
    assert "rates" in learning


def reference(modules: MendModules, index: int, left_pack: list[Tensor], gradient: Factors, case: int) -> Tensor:
    """Equations 3 and 4, one token at a time."""
    name, inputs, _ = SHAPES[index]
    same = [other for other in SHAPES if other[1:] == SHAPES[index][1:]]
    network, place = (
        modules.networks[f"{SHAPES[index][1]}x{SHAPES[index][2]}"],
        [other[0] for other in same].index(name),
    )
    parts = {key: value.double() for key, value in network.state_dict().items()}
    values = torch.cat(left_pack).double()
    mean, deviation = values.mean(0), values.std(0)
    total = torch.zeros(SHAPES[index][2], inputs, dtype=torch.float64)
    for token in range(gradient.inputs.shape[1]):
        if not gradient.kept[case, token]:
            continue
        z = (torch.cat([gradient.inputs[case, token], gradient.outputs[case, token]]).double() - mean) / deviation
        first = parts["up.0"] @ (parts["down.0"] @ z) + parts["bias"]
        h = z + torch.relu(parts["scale"][place, 0] * first + parts["shift"][place, 0])
        second = parts["up.1"] @ (parts["down.1"] @ h)
        g = h + torch.relu(parts["scale"][place, 1] * second + parts["shift"][place, 1])
        total += torch.outer(g[inputs:], g[:inputs])
    return -0.25 * torch.exp(10 * modules.rates[index].double()) * total


def test_changes_are_those_of_the_reference(trained: MendModules) -> None:
    gradients = random_gradients(9)
    changes = [change.dense() for change in trained(gradients)]
    for index in range(len(SHAPES)):
        left_pack = [
            torch.cat([part.inputs, part.outputs], -1)[part.kept]
            for part in (random_gradients(3)[index], random_gradients(4)[index])
        ]
        for case in range(2):
            wanted = reference(trained, index, left_pack, gradients[index], case)
            torch.testing.assert_close(changes[index][case].double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_change_is_a_sum_over_tokens_and_not_diluted_by_them(trained: MendModules) -> None:
    once = random_gradients(9, cases=1)
    twice = [Factors(*(torch.cat([part, part], 1) for part in (some.inputs, some.outputs, some.kept))) for some in once]
    for single, double in zip(trained(once), trained(twice), strict=True):
        torch.testing.assert_close(double.dense(), 2 * single.dense())


def test_what_is_not_kept_changes_nothing(trained: MendModules) -> None:
    gradients = random_gradients(9)
    other = [
        Factors(
            torch.where(part.kept[..., None], part.inputs, 7.0),
            torch.where(part.kept[..., None], part.outputs, -3.0),
            part.kept,
        )
        for part in gradients
    ]
    for first, second in zip(trained(gradients), trained(other), strict=True):
        torch.testing.assert_close(first.dense(), second.dense(), rtol=1e-5, atol=1e-6)


def test_matrices_of_one_shape_share_a_network_and_differ_by_scale_and_shift(trained: MendModules) -> None:
    assert set(trained.networks) == {"5x7", "7x5"}
    gradients = random_gradients(9)
    first, _, second, _ = trained([gradients[0], gradients[1], gradients[0], gradients[1]])
    assert not torch.allclose(first.dense(), second.dense(), rtol=0.01)


@pytest.mark.parametrize("parts", [[40], [1, 39], [13, 13, 14]])
def test_statistics_do_not_depend_on_how_values_come(parts: list[int]) -> None:
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1e-3, 1, 10, 1e3, 0])
    values = values + torch.tensor([0, 1e-3, 5, 0, 0, 2])
    statistics = Statistics(6)
    for part in values.split(parts):
        statistics.gather(part)
    wanted = values.double()
    expected = (wanted - wanted.mean(0)) / wanted.std(0)
    torch.testing.assert_close(statistics(values)[:, :5].double(), expected[:, :5], rtol=1e-3, atol=1e-4)
    assert statistics(values)[:, 5].abs().max() < 1e-5  # It never varied: centred, and not divided by nothing.


def test_modules_survive_their_own_state_dict(trained: MendModules) -> None:
    copy: nn.Module = MendModules(config(), SHAPES)
    copy.load_state_dict(trained.state_dict())
    for first, second in zip(trained(random_gradients(9)), copy(random_gradients(9)), strict=True):
        assert torch.equal(first.dense(), second.dense())
