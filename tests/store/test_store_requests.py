"""Requests with a key: each makes its change once, whoever sends it again, and whichever process hears it."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from edit_examples import bound, make_edit, make_expert

from liveedit.errors import ConflictError, InvalidInputError, NotFoundError
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore

ONE = ChangeRequest("ada", "k", b"body")


def test_a_request_makes_its_edit_once_also_after_a_restart(location: Path | str) -> None:
    with bound(location) as opened:
        assert opened.made_by(ONE) is None
        edit = opened.add(make_edit(), make_expert(1), request=ONE)
        assert opened.add(make_edit("another"), make_expert(2), request=ONE) == edit
    with bound(location) as opened:
        assert opened.made_by(ONE) == edit
        assert opened.add(make_edit(), make_expert(1), request=ONE) == edit
        assert len(opened) == opened.latest_revision() == 1
        assert opened.verify() == ()


def test_undo_and_redo_are_answered_as_they_were(location: Path | str) -> None:
    with bound(location) as opened:
        edit = opened.add(make_edit(), make_expert())
        undo, redo = ChangeRequest("ada", "undo", b""), ChangeRequest("ada", "redo", b"")
        undone = opened.undo(edit.id, request=undo)
        assert undone.undone_at is not None
        redone = opened.redo(edit.id, request=redo)
        assert opened.undo(edit.id, request=undo) == undone
        assert opened.get(edit.id).is_active, "it was not undone again"
        opened.undo(edit.id)
        assert opened.redo(edit.id, request=redo) == redone == edit
        assert not opened.get(edit.id).is_active
        assert opened.undo(edit.id, request=undo) == undone, "the time is that of then"
        assert opened.latest_revision() == 4


def test_the_key_is_the_owners_and_goes_with_one_body(location: Path | str) -> None:
    with bound(location) as opened:
        edit = opened.add(make_edit(), make_expert(), request=ONE)
        for change in (
            lambda request: opened.add(make_edit(), make_expert(), request=request),
            lambda request: opened.undo(edit.id, request=request),
            opened.made_by,
        ):
            with pytest.raises(ConflictError, match="another body"):
                change(ChangeRequest("ada", "k", b"another"))
        others = [ChangeRequest("bob", "k", b"another"), ChangeRequest("ad", "ak", b"another")]
        for other in others:
            assert opened.add(make_edit(), make_expert(), request=other).id != edit.id
        assert len(opened) == 3
    for key in ("", "k" * 256):
        with pytest.raises(InvalidInputError, match="1 to 255"):
            ChangeRequest("ada", key, b"")


def test_a_change_that_failed_may_be_tried_again(location: Path | str) -> None:
    with bound(location) as opened:
        with pytest.raises(NotFoundError):
            opened.add(make_edit(), make_expert(), supersedes=["0" * 8], request=ONE)
        assert opened.add(make_edit(), make_expert(), request=ONE).number == 1


def test_old_requests_are_forgotten(path: Path) -> None:
    with bound(path) as opened:
        requests = [ChangeRequest("ada", str(number), b"", kept_changes=3) for number in range(6)]
        for request in requests:
            opened.add(make_edit(), make_expert(), request=request)
        assert [opened.made_by(request) is not None for request in requests] == [False] * 3 + [True] * 3


def test_requests_are_forgotten_one_by_one(location: Path | str) -> None:
    """Each after the number of changes that it came with, whatever later requests say."""
    with bound(location) as opened:
        kept = {key: ChangeRequest("ada", key, b"", kept) for key, kept in (("good", None), ("long", 5), ("short", 2))}
        for request in kept.values():
            opened.add(make_edit(), make_expert(), request=request)
        found = []
        for number in range(5):
            opened.add(make_edit(), make_expert(), request=ChangeRequest("ada", str(number), b"", kept_changes=1))
            found.append([key for key, request in kept.items() if opened.made_by(request) is not None])
        assert found == [["good", "long", "short"], ["good", "long"], ["good", "long"], ["good"], ["good"]]


def test_a_request_may_be_answered_with_an_edit_that_is_there(location: Path | str) -> None:
    with bound(location) as opened:
        edit = opened.add(make_edit(), make_expert())
        other = opened.add(make_edit("other"), make_expert(2))
        opened.remember(ONE, edit.id)
        opened.remember(ONE, other.id)
        assert opened.made_by(ONE) == edit, "the first answer stays"
        assert opened.add(make_edit(), make_expert(), request=ONE) == edit
        opened.undo(edit.id)
        assert opened.made_by(ONE) == edit and len(opened) == 1
        assert opened.latest_revision() == 3 and opened.verify() == ()
        with pytest.raises(NotFoundError):
            opened.remember(ChangeRequest("ada", "new", b""), "0" * 8)
        opened.purge(edit.id)
        with pytest.raises(NotFoundError, match="was purged"):
            opened.made_by(ONE)


def test_only_digests_of_requests_are_stored(path: Path) -> None:
    with bound(path) as opened:
        opened.add(
            make_edit(), make_expert(), request=ChangeRequest("secret owner", "secret key \ud800", b"secret body")
        )
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"secret" not in content


def test_the_request_of_a_purged_edit_makes_nothing_new(path: Path) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert(), request=ONE)
        undo = ChangeRequest("ada", "undo", b"")
        opened.undo(edit.id, request=undo)
        opened.purge(edit.id)
        for request in (ONE, undo):
            with pytest.raises(NotFoundError, match="was purged"):
                opened.made_by(request)
        with pytest.raises(NotFoundError, match="was purged"):
            opened.add(make_edit(), make_expert(), request=ONE)
        assert len(opened) == 0 and opened.verify() == ()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT body_sha256 FROM requests").fetchall() == [("",)]


def test_racing_replicas_make_one_edit(location: Path | str) -> None:
    stores = [bound(location) for _ in range(4)]
    stores[0].add(make_edit("first"), make_expert())
    barrier = threading.Barrier(len(stores))

    def send(store: EditStore) -> list[str]:
        barrier.wait(30)
        return [
            store.add(make_edit(), make_expert(), request=ChangeRequest("ada", str(number), b"")).id
            for number in range(10)
        ]

    with ThreadPoolExecutor(len(stores)) as pool:
        answers = list(pool.map(send, stores))
    assert all(answer == answers[0] for answer in answers) and len(set(answers[0])) == 10
    assert len(stores[0]) == 11 and stores[0].verify() == ()
    for store in stores:
        store.close()


def _add_and_die(path: Path) -> None:
    import os

    store = bound(path)
    store.add(make_edit(), make_expert(), request=ONE)
    os._exit(9)  # Before anybody was told.


def test_a_request_that_was_committed_before_a_crash_is_answered_after_it(path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_add_and_die, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    with bound(path) as opened:
        (edit,) = opened.list()
        assert opened.add(make_edit(), make_expert(), request=ONE) == edit
        assert len(opened) == 1
