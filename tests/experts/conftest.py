from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, reason_to_skip, running_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edits.db"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; the test is skipped, with the reason, where none can be started."""
    if (reason := reason_to_skip()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database."""
    return postgres_server.empty_database()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def location(request: pytest.FixtureRequest) -> Path | str:
    """A place for edits, once in a file and once in a database."""
    name = {"sqlite": "path", "postgres": "postgres_url"}[request.param]
    return request.getfixturevalue(name)
