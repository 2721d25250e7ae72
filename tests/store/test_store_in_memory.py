"""The store in memory does what a file does, and leaves nothing."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from edit_examples import BACKBONE, EDITOR, bound, make_edit, make_expert

from liveedit.errors import NotFoundError, StoreError
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore


def volatile() -> EditStore:
    store = EditStore(None)
    store.bind(BACKBONE, EDITOR, backbone="tiny-llava", editor="liveedit")
    return store


def test_the_same_changes_give_the_same_as_in_a_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    chance, numbers = random.Random(3), iter(range(10**6))
    monkeypatch.setattr("liveedit.store.store.secrets.token_hex", lambda _: f"{next(numbers) // 2:08x}")
    monkeypatch.setattr("liveedit.store.writes.now", lambda: "2026-01-01T00:00:00.000+00:00")
    with volatile() as memory:
        assert set(tmp_path.iterdir()) == before
        with bound(path) as file:
            ids: list[str] = []
            for seed in range(60):
                what = chance.choice(["add", "supersede", "undo", "redo"])
                edit_id = chance.choice(ids) if ids else ""
                outcomes = []
                for store in (memory, file):
                    try:
                        if what == "add" or not ids:
                            outcomes.append(store.add(make_edit(str(seed)), make_expert(seed)))
                        elif what == "supersede":
                            outcomes.append(store.add(make_edit(), make_expert(seed), supersedes=[edit_id]))
                        else:
                            outcomes.append(getattr(store, what)(edit_id))
                    except NotFoundError as error:
                        outcomes.append(str(error))
                assert outcomes[0] == outcomes[1]
                ids = [edit.id for edit in file.list(include_undone=True)]
            assert memory.list(include_undone=True) == file.list(include_undone=True) and len(ids) > 20
            assert memory.history() == file.history()
            assert [expert for _, expert in memory.active_experts()] == [expert for _, expert in file.active_experts()]
            assert memory.verify() == file.verify() == ()
            assert memory.purge(ids[0]).prompt == ""


def test_threads_share_it_and_each_store_is_its_own() -> None:
    with volatile() as one, volatile() as other:
        with ThreadPoolExecutor(8) as pool:
            request = ChangeRequest("ada", "k", b"")
            same = set(pool.map(lambda _: one.add(make_edit(), make_expert(), request=request).id, range(8)))
            list(pool.map(lambda seed: one.add(make_edit(), make_expert(seed)), range(40)))
        assert len(same) == 1 and len(one) == 41 and one.verify() == ()
        assert len(other) == 0
    with pytest.raises(StoreError, match="is closed"):
        one.list()
