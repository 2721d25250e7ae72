"""Purging: the bytes are gone from the file, the history keeps that there was something."""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from edit_examples import bound, make_edit, make_expert, part_bytes
from PIL import Image
from safetensors.numpy import load

from liveedit.errors import NotFoundError, StoreError
from liveedit.images import image_digest
from liveedit.store.evidence import EarlierEdit, Evidence, LocalityProbe, Rephrased
from liveedit.store.store import EditStore, NewEdit, thumbnail_png

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
TEXTS = {
    "prompt": "Who is Zebedee Quint?",
    "answer": "the wanted answer xyzzy",
    "answer_before": "plugh said before",
    "answer_after": "frobozz said after",
    "subject": "subject-quux",
    "relation": "relation-corge",
    "image_name": "grault.png",
    "author": "garply the author",
    "note": "waldo the note",
}
EVIDENCE = Evidence(
    rephrasings=(Rephrased("fred rephrased", "plover before", "thingum after", True),),
    locality=(LocalityProbe("wibble probed", "c0ffee" * 10 + "cafe", "wobble before", "wubble after", False),),
    earlier_edits=(EarlierEdit("00000000", "flob before", "flab after", True),),
)
EVIDENCE_TEXTS = (*("fred reph", "plover b", "thingum a", "wibble p", "c0ffeec0ffee", "wobble b", "wubble a"), "flob b")


def secret_edit() -> NewEdit:
    asked = tuple(getattr(EVIDENCE, part) for part in ("rephrasings", "locality", "earlier_edits"))
    assert all(asked), "evidence of each kind"
    return dataclasses.replace(make_edit(), image_sha256=image_digest(NOISE), evidence=EVIDENCE, **TEXTS)


def traces(folder: Path, wanted: dict[str, bytes]) -> set[str]:
    """Which of these can be found in any file of the folder."""
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return {name for name, data in wanted.items() if data in content}


def secrets_of(picture: bytes) -> dict[str, bytes]:
    expert = make_expert(77)
    parts = {name: part_bytes(expert, name) for name in load(expert)}
    texts = {name: text.encode() for name, text in TEXTS.items()} | {text: text.encode() for text in EVIDENCE_TEXTS}
    digests = {"digest": hashlib.sha256(expert).hexdigest().encode(), "image_sha256": image_digest(NOISE).encode()}
    # Blobs are spread over pages of the file: their beginnings are in one piece.
    return {**parts, **texts, **digests, "image": picture[40:400], "undone by": b"thud who undid"}


def record_digests(path: Path) -> dict[str, bytes]:
    """Of the edit that is purged and of what was done to it, out of which texts might be guessed."""
    of_edits = f"SELECT record_sha256 FROM edits WHERE author = '{TEXTS['author']}'"
    of_events = "SELECT record_sha256 FROM events WHERE author IS NOT NULL"
    with closing(sqlite3.connect(path)) as connection:
        found = [sha256 for (sha256,) in connection.execute(f"{of_edits} UNION ALL {of_events}")]
    assert len(found) == 3
    return {f"record {sha256}": sha256.encode() for sha256 in found}


def test_purging_removes_the_bytes(path: Path) -> None:
    picture = thumbnail_png(NOISE)
    wanted = secrets_of(picture)
    with bound(path) as opened:
        for seed in range(20):
            opened.add(make_edit(str(seed)), make_expert(seed))
        gone = opened.add(secret_edit(), make_expert(77), picture, image=picture)
        for seed in range(20, 40):
            opened.add(make_edit(str(seed)), make_expert(seed))
        opened.undo(gone.id, author="thud who undid")
        opened.redo(gone.id)
        wanted |= record_digests(path)
        assert traces(path.parent, wanted) == wanted.keys(), "what is looked for is there before"
        purged = opened.purge(gone.id, author="clerk", note="asked to be forgotten")
        assert traces(path.parent, wanted) == set(), "while the file is open"
        assert len(opened) == 40 and opened.verify() == ()
    assert traces(path.parent, wanted) == set()
    assert (purged.prompt, purged.answer, purged.author, purged.expert_digest) == ("", "", None, None)
    with EditStore(path) as opened:
        assert opened.get(gone.id) == purged
        assert [(event.kind, event.author, event.note) for event in opened.history(gone.id)] == [
            *((kind, None, None) for kind in ("edit", "undo", "redo")),
            ("purge", "clerk", "asked to be forgotten"),
        ]
        assert opened.list()[0].expert == make_expert(0)


def test_a_purged_edit_is_out_of_force_and_of_the_past(path: Path) -> None:
    with bound(path) as opened:
        first, second = (opened.add(make_edit(str(seed)), make_expert(seed)).id for seed in range(2))
        opened.purge(first[:6])
        assert [edit.id for edit in opened.list()] == [second]
        assert [edit.id for edit in opened.list(at=2)] == [second]
        assert [edit_id for edit_id, _ in opened.active_experts(at=1)] == []
        assert opened.changes_since(2).removed == (first,)
        with pytest.raises(StoreError, match="was purged"):
            opened.expert(first)
        with pytest.raises(NotFoundError, match="was purged"):
            opened.redo(first)
        with pytest.raises(NotFoundError, match="already purged"):
            opened.undo(first)
        assert opened.purge(first) == opened.get(first)
        assert opened.latest_revision() == 3, "purging again is no change"
        opened.undo(second)
        assert opened.purge(second).undone_at is not None
        assert opened.verify() == ()


def test_purging_what_superseded_brings_back_what_was_before(path: Path) -> None:
    with bound(path) as opened:
        old = opened.add(make_edit("1"), make_expert(1)).id
        new = opened.add(make_edit("2"), make_expert(2), supersedes=[old]).id
        opened.purge(new)
        assert [edit.id for edit in opened.list()] == [old]
        assert opened.verify() == ()


def test_experts_that_are_purged_while_they_are_read_are_left_out(path: Path) -> None:
    with bound(path) as opened:
        ids = [opened.add(make_edit(str(seed)), make_expert(seed)).id for seed in range(3)]
        experts = opened.active_experts()
        opened.purge(ids[1])
        assert [edit_id for edit_id, _ in experts] == [ids[0], ids[2]]


def test_a_reader_that_holds_the_log_is_told(path: Path) -> None:
    with bound(path, busy_timeout_s=0.1) as opened, EditStore(path) as reader:
        gone = opened.add(secret_edit(), make_expert(77))
        with reader._database.reading() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM edits").scalar_one()
            with pytest.raises(StoreError, match=r"read by another process.*purge the same edit again"):
                opened.purge(gone.id)
        opened.purge(gone.id)
        assert traces(path.parent, secrets_of(b"nothing" * 100)) == set()
