"""A process that changes an edits file until it is killed. Run as a script: it forks one writer for each line it reads.

Each line of standard input is the largest size of a file in bytes (0: any); the answers are `pid N` when a writer has
begun, a line for each change that the store acknowledged (`edit ID SEED`, `undo ID`, `redo ID`), `full` for one that it
refused, and `ended`.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time

import torch

from liveedit.errors import StoreError
from liveedit.experts import Expert
from liveedit.experts.store import EditStore, NewEdit


def expert_of(seed: int) -> Expert:
    """Numbers that tell which edit they belong to, over several pages of the file."""
    part = torch.full((4, 512), float(seed))
    return Expert(part, part + 0.5, part[0], part[1])


def say(*words: object) -> None:
    # One write, shorter than a pipe's buffer: it arrives whole or not at all.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def change_for_ever(location: str, seed: int) -> None:
    chance = random.Random(seed)
    with EditStore(location) as store:
        store.bind("b" * 64, "e" * 64, backbone="tiny-llava", editor="liveedit")
        while True:
            seed += 1
            try:
                kind = chance.choice(["edit", "edit", "undo", "redo"])
                active = [edit.id for edit in store.list()[-3:]]
                undone = [edit.id for edit in store.list(include_undone=True)[-9:] if not edit.is_active]
                if kind == "undo" and active:
                    say("undo", store.undo(chance.choice(active)).id)
                elif kind == "redo" and undone:
                    say("redo", store.redo(chance.choice(undone)).id)
                else:
                    edit = NewEdit(prompt="?", answer=str(seed), editor="liveedit")
                    say("edit", store.add(edit, expert_of(seed)).id, seed)
            except StoreError:
                say("full")
                time.sleep(0.002)


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
