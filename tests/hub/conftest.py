"""A hub that the tests of this folder push to and load from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import WRITER, HubServer, running_hub, use_hub
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub of this process, with the token of the owner and an empty cache."""
    with running_hub() as server:
        use_hub(server.url, tmp_path / "cache", WRITER, monkeypatch)
        yield server


@pytest.fixture(autouse=True)
def no_bars() -> Iterator[None]:
    """The bars of `huggingface_hub` would stand among what commands say."""
    disable_progress_bars()
    yield
    enable_progress_bars()
