"""Linear layers by oneDNN: the same function, its gradients, and only where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from liveedit.backbones import linear, load_backbone
from liveedit.backbones.linear import OneDnnLinear, speed_up_linear_layers


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in place of the one that describes the processor; empty so far."""
    path = tmp_path / "cpuinfo"
    path.write_text("")
    monkeypatch.setattr(linear, "_CPU_INFO", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    linear.is_worthwhile.cache_clear()
    yield path
    linear.is_worthwhile.cache_clear()


def changed(layer: nn.Linear) -> OneDnnLinear:
    layer.__class__ = OneDnnLinear
    assert isinstance(layer, OneDnnLinear)
    return layer


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 4, 5), (0, 5), (64, 5), (5, 17, 5), (1024, 5), (2, 1100, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_same_function(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, bias=bias).requires_grad_(False)
    given = torch.randn(shape)
    expected = given.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    found = changed(layer)(given)
    assert found.shape == (*shape[:-1], 7)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_large_batches_come_in_few_sizes_and_nothing_of_what_fills_them_up_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, counts = changed(nn.Linear(5, 7)), set[int]()

    def product(rows: torch.Tensor) -> torch.Tensor:
        counts.add(len(rows))
        return nn.functional.linear(rows, layer.weight, layer.bias)

    monkeypatch.setattr(layer, "_product", product)
    for count in range(1, 2500, 7):
        given = torch.randn(count, 5)
        torch.testing.assert_close(layer(given), nn.functional.linear(given, layer.weight, layer.bias))
    large = {count for count in counts if count > 64}
    assert max(large) == 1024 and all(count % 32 == 0 for count in large)


def test_gradients_reach_input_and_weights() -> None:
    torch.manual_seed(0)
    plain, fast = nn.Linear(5, 7), changed(nn.Linear(5, 7))
    fast.load_state_dict(plain.state_dict())
    given = [torch.ones(2, 5, requires_grad=True) for _ in range(2)]
    for layer, x in zip((plain, fast), given, strict=True):
        layer(x).square().sum().backward()
    assert torch.equal(given[0].grad, given[1].grad) and torch.equal(plain.weight.grad, fast.weight.grad)
    frozen = changed(nn.Linear(5, 7)).requires_grad_(False)
    x = torch.ones(2, 5, requires_grad=True)
    frozen(x).sum().backward()
    torch.testing.assert_close(x.grad, frozen.weight.sum(0).expand(2, 5))


@torch.no_grad()
def test_other_precisions_go_the_usual_way() -> None:
    layer = changed(nn.Linear(5, 7).double())
    given = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(layer(given), nn.functional.linear(given, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert changed(nn.Linear(5, 7))(torch.randn(2, 5)).dtype == torch.bfloat16


def test_weights_keep_their_names_and_other_layers_their_kind(processor: Path) -> None:
    class Special(nn.Linear):
        pass

    processor.write_text("vendor_id\t: AuthenticAMD\n")
    model = nn.ModuleDict({"plain": nn.Linear(2, 2), "special": Special(2, 2), "brief": nn.Linear(2, 2).bfloat16()})
    names = list(model.state_dict())
    speed_up_linear_layers(model)
    assert list(model.state_dict()) == names
    assert [type(model[name]) for name in model] == [OneDnnLinear, Special, nn.Linear]


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_other_processors_are_left_alone(processor: Path, vendor: str) -> None:
    processor.write_text(f"vendor_id\t: {vendor}\n")
    model = nn.Sequential(nn.Linear(2, 2))
    speed_up_linear_layers(model)
    assert type(model[0]) is nn.Linear


def test_backbones_are_loaded_with_it_where_it_is_worthwhile(processor: Path) -> None:
    processor.write_text("vendor_id\t: AuthenticAMD\n")
    kinds = {type(module) for module in load_backbone("tiny-llava").model.modules() if isinstance(module, nn.Linear)}
    assert kinds == {OneDnnLinear}
