"""An edits file that the disk or somebody's editor has spoilt."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from edit_examples import bound, make_edit, make_expert, part_bytes
from PIL import Image

from liveedit.errors import StoreError
from liveedit.store.store import EditStore, thumbnail_png

EVENT = "INSERT INTO events (revision, at, kind, edit_id)"


def damage(path: Path, wanted: bytes) -> None:
    """Flip one bit in the middle of these bytes, wherever the file keeps them."""
    content = bytearray(path.read_bytes())
    assert content.count(wanted) == 1
    content[content.index(wanted) + len(wanted) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_expert_is_found_by_reading_and_by_verify(path: Path) -> None:
    with bound(path) as opened:
        sound, hurt = (opened.add(make_edit(), make_expert(seed)) for seed in range(2))
        assert opened.verify() == ()
    damage(path, part_bytes(make_expert(1)))
    with EditStore(path) as opened:
        message = f"The expert of edit '{hurt.id}' .*edits.db' is damaged: its digest is .* go back to a backup"
        for read in (lambda: opened.expert(hurt.id), lambda: opened.get(hurt.id).expert):
            with pytest.raises(StoreError, match=message):
                read()
        with pytest.raises(StoreError, match=message):
            list(opened.active_experts())
        assert opened.expert(sound.id) == make_expert(0)
        (problem,) = opened.verify()
        assert f"The expert of edit '{hurt.id}' is damaged" in problem
        opened.undo(hurt.id)
        assert [edit_id for edit_id, _ in opened.active_experts()] == [sound.id]


def test_a_damaged_thumbnail_is_found(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = thumbnail_png(Image.fromarray(noise))
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert(), picture)
    damage(path, picture)
    with EditStore(path) as opened:
        with pytest.raises(StoreError, match="The thumbnail of edit"):
            opened.thumbnail(edit.id)
        assert len(opened.verify()) == 1


def test_an_expert_that_is_none_is_found_though_its_digest_is_right(path: Path) -> None:
    with bound(path) as opened:
        edit = opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path)) as connection, connection:
        digest = hashlib.sha256(b"pickle?").hexdigest()
        connection.execute("UPDATE blobs SET data = ?, sha256 = ?", (b"pickle?", digest))
    with EditStore(path) as opened:
        with pytest.raises(StoreError, match="not safetensors"):
            opened.expert(edit.id)
        assert len(opened.verify()) == 1


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM blobs WHERE edit_number = 2", "has no expert"),
        ("DELETE FROM edits WHERE number = 1", "The table edits has 1 rows, but 2 numbers were given out"),
        ("UPDATE edits SET undone_at = 'today' WHERE number = 1", "undone at today, but the history says None"),
        (
            "UPDATE edits SET revision_removed = 2 WHERE number = 1",
            "removed at 2, but its validity intervals are [(1, None)]",
        ),
        ("UPDATE intervals SET revision_removed = 9 WHERE edit_number = 1", "changed at the revisions [9]"),
        ("INSERT INTO intervals VALUES (1, 2, NULL)", "do not follow one another"),
        (
            "INSERT INTO events (revision, at, kind, edit_id) SELECT 3, at, 'undo', edit_id FROM events LIMIT 1",
            "has a undo",
        ),
        (
            "INSERT INTO events (revision, at, kind, edit_id) SELECT 3, at, 'purge', edit_id FROM events LIMIT 1",
            "was purged",
        ),
        ("UPDATE edits SET purged_at = 'today' WHERE number = 1", "was purged, but expert is still there"),
        ("UPDATE edits SET expert_digest = 'other'", "the edit says other"),
        ("UPDATE edits SET backbone_digest = 'other'", "was made by another model"),
        (
            "INSERT INTO events (revision, at, kind, edit_id) SELECT 2 + revision, at, 'edit', edit_id FROM events",
            "made 2",
        ),
        (f"{EVENT} VALUES (3, 'today', 'edit', 'nobody')", "not in edits"),
        ("DELETE FROM meta", "does not say which model"),
    ],
)
def test_verify_finds_what_does_not_agree(path: Path, statement: str, problem: str) -> None:
    with bound(path) as opened:
        for seed in range(2):
            opened.add(make_edit(), make_expert(seed))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    with EditStore(path) as opened:
        assert any(problem in line for line in opened.verify()), opened.verify()


def test_damage_to_the_structure_is_reported_and_not_raised(path: Path) -> None:
    with bound(path) as opened:
        for seed in range(20):
            opened.add(make_edit(), make_expert(seed, rank=64))
    content = bytearray(path.read_bytes())
    page = 4096
    content[6 * page : -page] = bytes(len(content) - 7 * page)
    path.write_bytes(content)
    with EditStore(path) as opened:
        assert opened.verify()
        with pytest.raises(StoreError, match="damaged"):
            list(opened.active_experts())


def test_a_truncated_file_is_a_store_error(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(StoreError, match="is damaged"), EditStore(path) as opened:
        opened.list()
