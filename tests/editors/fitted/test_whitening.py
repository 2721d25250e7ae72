"""Whitening: what it does to the samples it was computed from, and that its low-rank form is the full one."""

from __future__ import annotations

import pytest
import torch

from liveedit.editors.fitted import whitening as whitening_module
from liveedit.editors.fitted.whitening import Whitening


def uneven(samples: int, width: int, seed: int = 0, most: float = 100.0) -> torch.Tensor:
    """Features that vary `most` times more in some directions than in others, around a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return torch.randn(samples, width, generator=generator) * torch.linspace(1, most, width) @ mixing + 7.0


def test_with_a_small_ridge_the_covariance_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening_module, "_RIDGE", 1e-5)
    features = uneven(400, 12, most=10.0)
    whitened = Whitening.of(features)(features)
    assert torch.allclose(whitened.mean(0), torch.zeros(12), atol=1e-3)
    assert torch.allclose(whitened.T @ whitened / 400, torch.eye(12), atol=1e-3)


def test_with_the_ridge_no_direction_varies_more_than_1() -> None:
    features = uneven(400, 12)
    whitened = Whitening.of(features)(features)
    variances = torch.linalg.eigvalsh(whitened.T @ whitened / 400)
    assert float(variances.max()) <= 1.001 and float(variances.min()) < 0.1, (
        "a direction that hardly varies stays small"
    )
    raw = torch.linalg.eigvalsh(torch.cov(features.T))
    assert variances.max() / variances.min() < 0.05 * raw.max() / raw.min()


@pytest.mark.parametrize("samples", [5, 40])
def test_the_low_rank_form_is_the_full_matrix(samples: int) -> None:
    """(covariance + ridge)^(-1/2), with fewer samples than directions and with more."""
    width = 16
    features, queries = uneven(samples, width), uneven(9, width, seed=1)
    precise = features.double()
    covariance = torch.cov(precise.T, correction=0)
    ridge = whitening_module._RIDGE * covariance.trace() / width
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(width))
    expected = (queries.double() - precise.mean(0)) @ (vectors * values.rsqrt()) @ vectors.T
    assert torch.allclose(Whitening.of(features)(queries).double(), expected, rtol=1e-3, atol=1e-4)


def test_features_that_do_not_vary_are_finite() -> None:
    same = torch.ones(8, 4)
    assert torch.isfinite(Whitening.of(same)(torch.randn(3, 4))).all()


def test_any_number_of_leading_dimensions() -> None:
    whitening, features = Whitening.of(uneven(30, 6)), uneven(8, 6, seed=2)
    assert torch.allclose(whitening(features.view(2, 4, 6)), whitening(features).view(2, 4, 6), atol=1e-6)
    assert torch.allclose(whitening(features[3]), whitening(features)[3], atol=1e-6)


def test_it_moves_to_another_device_whole() -> None:
    whitening = Whitening.of(uneven(30, 6))
    moved = whitening.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved(torch.empty(3, 6, device="meta")).shape == (3, 6)
    assert {tensor.device.type for tensor in whitening.tensors.values()} == {"cpu"}
    back = whitening.to(torch.device("cpu"))
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in whitening.tensors.items())
