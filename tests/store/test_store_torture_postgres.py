"""The same torture on PostgreSQL: writers killed at random moments, and the server itself crashed under them.

`LIVEEDIT_KILLS` says how many kills; `make torture` asks for 200, and a tenth as many crashes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from sqlalchemy import NullPool, create_engine, text
from test_store_torture import KILLS, torturing

from liveedit.store.store import EditStore

pytestmark = pytest.mark.postgres

CRASHES = max(2, KILLS // 10)


def wait_for_the_dead(url: str) -> None:
    """Until the server has noticed that its client is gone: till then a last commit may come in."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    engine = create_engine(url, poolclass=NullPool)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with engine.connect() as connection:
            if connection.execute(text(others)).scalar_one() == 0:
                return
        time.sleep(0.01)
    raise AssertionError("connections of a killed writer are still there after 30 s")


def test_killed_writers_lose_nothing_that_was_acknowledged(postgres_url: str) -> None:
    with torturing(postgres_url) as torturer:
        for _ in range(KILLS):
            torturer.kill_one()
            wait_for_the_dead(postgres_url)
            torturer.check()
        assert torturer.acknowledged > KILLS, "writers got to work before they were killed"


def test_a_server_that_crashes_loses_nothing_that_was_acknowledged(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """One writer goes on through all of it: it is refused while the server is down, and finds it again."""
    chance = random.Random(3)
    with torturing(postgres_url) as torturer:
        EditStore(postgres_url).close()
        writer = torturer.begin_one()
        for _ in range(CRASHES):
            before = torturer.acknowledged
            while torturer.acknowledged < before + 3:
                torturer.read_one()
            time.sleep(chance.uniform(0, 0.3))
            postgres_server.crash()
            postgres_server.start()
        before = torturer.acknowledged
        while torturer.acknowledged < before + 3:
            torturer.read_one()
        os.kill(writer, signal.SIGKILL)
        torturer.read_to_end()
        wait_for_the_dead(postgres_url)
        torturer.check()
        assert torturer.refused > 0, "the writer met the server's absence"


_TESTS = """
import time
from postgres_server import running_server
with running_server() as server:
    print(server.folder, flush=True)
    time.sleep(600)
"""


def test_the_server_of_tests_that_are_killed_is_stopped(postgres_server: PostgresServer) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, "-c", _TESTS], stdout=subprocess.PIPE, env=environment, text=True) as tests:
        assert tests.stdout is not None
        folder = Path(tests.stdout.readline().strip())
        server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        tests.kill()
    until = time.monotonic() + 60
    while (folder.exists() or Path(f"/proc/{server}").exists()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not folder.exists() and not Path(f"/proc/{server}").exists()
