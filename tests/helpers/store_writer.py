"""A process that changes an edits file until it is killed. Run as a script: it forks one writer for each line it reads.

Each line of standard input is the largest size of a file in bytes (0: no limit). The answers are `pid N` when a writer
has started, `try SEED KIND ID` before each change (`edit -`, or `supersede`, `undo` and `redo` of an edit), `done ID`
for a change that the store acknowledged, `full` for one that it refused and that the same request tries again, and
`ended`.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from safetensors.numpy import save

from liveedit.errors import StoreError
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore, NewEdit, StoredEdit

Result = TypeVar("Result")


def expert_of(seed: int) -> bytes:
    """An expert that identifies its edit, over several pages of the file."""
    part = np.full((4, 512), seed, np.float32)
    return save({"u": part, "v": part + np.float32(0.5), "visual_feature": part[0], "prompt_feature": part[1]})


def say(*words: object) -> None:
    # One write, shorter than a pipe's buffer: it arrives whole or not at all.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def bind(store: EditStore) -> None:
    store.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")


def request_of(seed: int, kind: str, edit_id: str) -> ChangeRequest:
    return ChangeRequest("writer", str(seed), f"{kind} {edit_id}".encode(), kept_changes=1_000_000)


def make_change(store: EditStore, seed: int, kind: str, edit_id: str) -> StoredEdit:
    """Make the change of this seed; repeated calls make it once."""
    request = request_of(seed, kind, edit_id)
    if kind == "undo":
        return store.undo(edit_id, request=request)
    if kind == "redo":
        return store.redo(edit_id, request=request)
    edit = NewEdit(prompt="?", answer=str(seed), editor="liveedit")
    return store.add(edit, expert_of(seed), supersedes=[edit_id] if kind == "supersede" else [], request=request)


def choose_change(store: EditStore, chance: random.Random) -> tuple[str, str]:
    """The kind of the next change, and the edit to change."""
    kind = chance.choice(["edit", "edit", "supersede", "undo", "redo"])
    active = [edit.id for edit in store.list()[-3:]]
    undone = [edit.id for edit in store.list(include_undone=True)[-9:] if not edit.is_active]
    candidates = {"edit": [], "supersede": active, "undo": active, "redo": undone}[kind]
    return (kind, chance.choice(candidates)) if candidates else ("edit", "-")


def until_it_works(step: Callable[[], Result]) -> Result:
    while True:
        try:
            return step()
        except StoreError:
            say("full")
            time.sleep(0.002)


def change_for_ever(location: str, seed: int) -> None:
    chance = random.Random(seed)
    with EditStore(location) as store:
        bind(store)
        while True:
            seed += 1
            kind, edit_id = until_it_works(lambda: choose_change(store, chance))
            say("try", seed, kind, edit_id)
            change = functools.partial(make_change, store, seed, kind, edit_id)
            say("done", until_it_works(change).id)


def serve(location: str) -> None:
    for number, line in enumerate(sys.stdin):
        largest = int(line)
        pid = os.fork()
        if pid == 0:
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            say("pid", os.getpid())
            try:
                change_for_ever(location, 1_000_000 * (number + 1))
            except StoreError:  # On opening.
                say("full")
                time.sleep(60)
            os._exit(0)
        os.waitpid(pid, 0)
        say("ended")


if __name__ == "__main__":
    serve(sys.argv[1])
