"""Mixed precision is used where the device multiplies bfloat16 fast, and only if it is wanted."""

from __future__ import annotations

import pytest
import torch

from liveedit.backbones import precision


@pytest.mark.parametrize(("fast", "wanted"), [(True, True), (True, False), (False, True), (False, False)])
def test_products_are_in_bfloat16_only_if_fast_and_wanted(
    monkeypatch: pytest.MonkeyPatch, fast: bool, wanted: bool
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device_type: fast)
    matrix = torch.ones(2, 2)
    with precision.mixed_precision("cpu", wanted):
        product = matrix @ matrix
    assert product.dtype == (torch.bfloat16 if fast and wanted else torch.float32)
