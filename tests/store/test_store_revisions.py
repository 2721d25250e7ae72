"""Revisions: undo, redo, what superseded what, the past, and what a replica has to catch up on."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_examples import bound, make_edit, make_expert

from liveedit.errors import EditStateError, InvalidInputError, NotFoundError
from liveedit.store.store import Changes, EditStore


@pytest.fixture
def opened(location: Path | str) -> Iterator[EditStore]:
    with bound(location) as store:
        yield store


def ids_of(store: EditStore, at: int | None = None) -> list[str]:
    return [edit.id for edit in store.list(at=at)]


def add(store: EditStore, seed: int = 0, **options: object) -> str:
    return store.add(make_edit(str(seed)), make_expert(seed), **options).id  # type: ignore[arg-type]


def test_redo_brings_back_the_same_edit(opened: EditStore) -> None:
    first, second = add(opened, 1), add(opened, 2)
    before = opened.get(first)
    opened.undo(first)
    assert opened.redo(first[:6]) == before
    assert ids_of(opened) == [first, second], "in the order they were made"
    assert dict(opened.active_experts())[first] == make_expert(1)
    assert [event.kind for event in opened.history(first)] == ["edit", "undo", "redo"]
    with pytest.raises(NotFoundError, match=f"'{first}' is active"):
        opened.redo(first)
    with pytest.raises(NotFoundError, match="no edit"):
        opened.redo("0" * 9)
    assert opened.latest_revision() == 4
    assert opened.verify() == ()


def test_who_and_why_are_in_the_history(opened: EditStore) -> None:
    edit = dataclasses.replace(make_edit(), author="ada", note="seen in the zoo")
    stored = opened.add(edit, make_expert())
    opened.undo(stored.id, author="bob", note="wrong zoo")
    opened.redo(stored.id, author="ada")
    assert [(event.author, event.note) for event in opened.history()] == [
        ("ada", "seen in the zoo"),
        ("bob", "wrong zoo"),
        ("ada", None),
    ]
    assert (opened.get(stored.id).author, opened.get(stored.id).note) == ("ada", "seen in the zoo")
    with pytest.raises(InvalidInputError, match="The note holds half of a surrogate pair"):
        opened.undo(stored.id, note="\ud800")
    assert opened.get(stored.id).is_active


def test_the_past_is_as_it_was(opened: EditStore) -> None:
    first, second = add(opened, 1), add(opened, 2)  # revisions 1, 2
    opened.undo(first)  # 3
    opened.redo(first)  # 4
    opened.undo(second)  # 5
    wanted = [[], [first], [first, second], [second], [first, second], [first]]
    assert [ids_of(opened, at) for at in range(6)] == wanted
    assert [[edit_id for edit_id, _ in opened.active_experts(at)] for at in range(6)] == wanted
    assert [edit.id for edit in opened.list(include_undone=True, at=1)] == [first]
    for revision in (-1, 6):
        for read in (opened.active_experts, opened.changes_since, lambda at: opened.list(at=at)):
            with pytest.raises(InvalidInputError, match=f"no revision {revision}. The history has revisions 0 to 5"):
                read(revision)


def test_a_superseded_edit_leaves_and_comes_back_in_the_same_change(opened: EditStore) -> None:
    old, other = add(opened, 1), add(opened, 2)
    new = add(opened, 3, supersedes=[old[:7]])  # revision 3
    assert ids_of(opened) == [other, new]
    assert (opened.get(new).revision_added, opened.get(old).revision_removed) == (3, 3)
    assert [event.kind for event in opened.history()] == ["edit", "edit", "supersede"]
    with pytest.raises(NotFoundError, match="already superseded"):
        opened.undo(old)
    opened.undo(new)
    assert ids_of(opened) == [old, other], "as if the new one had never been made"
    opened.redo(new)
    assert ids_of(opened) == [other, new]
    assert opened.latest_revision() == 5
    with pytest.raises(EditStateError, match=f"was superseded: '{new}' is active"):
        opened.redo(old, alone=True)
    opened.redo(old)
    opened.undo(old)
    opened.undo(new)
    assert ids_of(opened) == [other], "the old one was taken out for its own sake since"
    assert opened.verify() == ()


def test_superseding_what_is_not_in_force_stores_nothing(opened: EditStore) -> None:
    old = add(opened, 1)
    opened.undo(old)
    for target in (old, "0" * 9):
        with pytest.raises(NotFoundError):
            add(opened, 2, supersedes=[target])
    assert opened.latest_revision() == 2 and len(opened.list(include_undone=True)) == 1


def test_changes_tell_how_the_edits_stand_now(opened: EditStore) -> None:
    first, second, third = (add(opened, seed) for seed in range(3))
    assert opened.changes_since(3) == Changes(3, (), ()) and not opened.changes_since(3)
    assert opened.changes_since(0) == Changes(3, (first, second, third), ())
    opened.undo(second)
    fourth = add(opened, 4)
    opened.undo(fourth)
    opened.undo(first)
    opened.redo(first)
    assert opened.changes_since(3) == Changes(8, (first,), (second, fourth))
    assert opened.changes_since(7) == Changes(8, (first,), ())
    assert [edit_id for edit_id, _ in opened.experts((third, first))] == [third, first]
    with pytest.raises(NotFoundError, match="no edit 'unknown'"):
        opened.experts(("unknown",))


def test_random_changes_against_a_slow_reference(opened: EditStore) -> None:
    """A hundred changes; after each the edits in force are written down, and every revision is asked for again."""
    chance = random.Random(5)
    states: list[list[str]] = [[]]
    known: list[str] = []
    for seed in range(100):
        active = states[-1]
        undone = [edit_id for edit_id in known if edit_id not in active]
        what = chance.choice(["add", "undo", "redo"])
        if what == "undo" and active:
            gone = chance.choice(active)
            opened.undo(gone)
            states.append([edit_id for edit_id in active if edit_id != gone])
        elif what == "redo" and undone:
            back = chance.choice(undone)
            opened.redo(back)
            states.append([edit_id for edit_id in known if edit_id in active or edit_id == back])
        else:
            known.append(add(opened, seed))
            states.append([*active, known[-1]])
    assert [ids_of(opened, at) for at in range(101)] == states
    assert opened.verify() == ()
    for _ in range(20):
        replica_at = chance.randrange(101)
        held = set(states[replica_at])
        changes = opened.changes_since(replica_at)
        assert (held | set(changes.added)) - set(changes.removed) == set(states[-1])
        assert changes.revision == 100


@pytest.mark.parametrize("given", ["\x00", "ffffffff", "\ud800", "", "%"])
def test_an_id_that_is_none_is_unknown(location: Path | str, given: str) -> None:
    """Whatever it is made of, also where the database could not even look for it."""
    with bound(location) as opened:
        opened.add(make_edit(), make_expert())
        for look in (
            lambda: opened.page(after=given),
            lambda: opened.one(given),
            lambda: opened.experts([given]),
        ):
            with pytest.raises(NotFoundError, match="There is no edit"):
                look()
