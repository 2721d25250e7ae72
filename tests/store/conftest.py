from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edits.db"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def location(request: pytest.FixtureRequest) -> Path | str:
    """A place for edits, once in a file and once in a database."""
    name = {"sqlite": "path", "postgres": "postgres_url"}[request.param]
    return request.getfixturevalue(name)
