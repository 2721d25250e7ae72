"""Imports of edits that contradict active ones: refused, superseding, or kept."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
from edit_examples import BACKBONE, bound, make_expert

from liveedit.errors import ConflictError, InvalidInputError, StoreError
from liveedit.store.store import Contradiction, EditStore, Imported, NewEdit

PLATE, BOWL = "1" * 64, "2" * 64


def about(prompt: str, answer: str, image: str | None = PLATE) -> NewEdit:
    name = None if image is None else f"{image[:1]}.png"
    return NewEdit(prompt=prompt, answer=answer, editor="liveedit", image_sha256=image, image_name=name)


def add(store: EditStore, prompt: str, answer: str, image: str | None = PLATE) -> str:
    return store.add(about(prompt, answer, image), make_expert(len(prompt + answer))).id


def state(store: EditStore) -> object:
    return store.list(include_undone=True), store.history(), store.verify()


def active(store: EditStore) -> list[str]:
    return [edit.id for edit in store.list()]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "edits.safetensors"


@pytest.fixture(params=[True, False], ids=["whole", "active"])
def source(request: pytest.FixtureRequest, tmp_path: Path, bundle: Path) -> list[str]:
    """Ids of the edits in a bundle, with or without history: "bread", and of another question "tea"."""
    with bound(tmp_path / "source.db") as store:
        ids = [add(store, "what FOOD", "bread"), add(store, "What drink?", "tea")]
        store.export_bundle(bundle, whole=request.param)
    return ids


def test_a_contradiction_is_refused_and_named(location: Path | str, bundle: Path, source: list[str]) -> None:
    with bound(location) as store:
        there = add(store, "What food?", "soup")
        before = state(store)
        with pytest.raises(ConflictError, match="Nothing was imported") as caught:
            store.import_bundle(bundle)
        assert state(store) == before
    message = str(caught.value)
    assert f"'what FOOD' (1.png): active: {there} 'soup'; in the bundle: {source[0]} 'bread'" in message
    assert "--on-conflict supersede" in message and "--on-conflict keep" in message
    assert "tea" not in message and str(bundle) in message


def test_an_imported_edit_supersedes_until_it_is_undone(location: Path | str, bundle: Path, source: list[str]) -> None:
    with bound(location) as store:
        there, other = add(store, "What food?", "soup"), add(store, "What food?", "rice", BOWL)
        done = store.import_bundle(bundle, on_conflict="supersede")
        assert done == Imported(
            added=tuple(source),
            superseded={there: source[0]},
            contradictions=(Contradiction("what FOOD", "1.png", {there: "soup"}, {source[0]: "bread"}),),
        )
        assert active(store) == [other, *source]
        assert [(event.revision, event.kind, event.edit_id) for event in store.history()] == [
            (1, "edit", there),
            (2, "edit", other),
            (3, "supersede", source[0]),
            (4, "edit", source[1]),
        ]
        assert [event.revision for event in store.history(there)] == [1, 3]
        assert [edit.id for edit in store.list(at=2)] == [there, other]
        store.undo(source[0])
        assert active(store) == [there, other, source[1]]
        store.redo(source[0])
        assert active(store) == [other, *source]
        with pytest.raises(ConflictError, match=f"was superseded: '{source[0]}'"):
            store.redo(there, alone=True)
        assert store.verify() == () and store.contradictions() == ()


def test_both_stay_active_if_they_are_kept(location: Path | str, bundle: Path, source: list[str]) -> None:
    with bound(location) as store:
        there = add(store, "What food?", "soup")
        done = store.import_bundle(bundle, on_conflict="keep")
        found = Contradiction("what FOOD", "1.png", {there: "soup"}, {source[0]: "bread"})
        assert done == Imported(added=tuple(source), contradictions=(found,))
        assert active(store) == [there, *source]
        assert store.verify() == (), "a contradiction is no damage"
        assert store.contradictions() == (
            Contradiction("What food?", "1.png", {there: "soup", source[0]: "bread"}, {}),
        )
        assert store.import_bundle(bundle).already_there == tuple(source), "nothing is added, so nothing contradicts"
        store.undo(there)
        assert store.contradictions() == ()


@pytest.mark.parametrize("on_conflict", ["refuse", "supersede", "keep"])
def test_the_same_answer_supersedes_and_is_no_contradiction(
    location: Path | str, bundle: Path, source: list[str], on_conflict: str
) -> None:
    with bound(location) as store:
        there = add(store, "What food?", "Bread.")
        done = store.import_bundle(bundle, on_conflict=on_conflict)  # pyright: ignore[reportArgumentType]
        assert done == Imported(added=tuple(source), superseded={there: source[0]}, repeated=(source[0],))
        assert active(store) == source
        store.undo(source[0])
        assert active(store) == [there, source[1]] and store.verify() == ()


def test_only_active_edits_of_the_same_image_and_prompt_contradict(
    location: Path | str, bundle: Path, source: list[str]
) -> None:
    with bound(location) as store:
        undone = add(store, "What food?", "soup")
        store.undo(undone)
        others = [add(store, "What food?", "rice", image) for image in (BOWL, None)]
        others.append(add(store, "What foods?", "rice"))
        assert store.import_bundle(bundle) == Imported(added=tuple(source))
        assert active(store) == [*others, *source]


def test_undone_edits_of_a_bundle_contradict_nothing(location: Path | str, bundle: Path, tmp_path: Path) -> None:
    with bound(tmp_path / "source.db") as source, bound(location) as store:
        ids = [add(source, "What food?", "bread")]
        source.undo(ids[0])
        ids.append(add(source, "What food?", "cake"))
        source.export_bundle(bundle)
        add(store, "What drink?", "tea")
        assert store.import_bundle(bundle) == Imported(added=tuple(ids))
        assert store.contradictions() == () and not store.get(ids[0]).is_active


def test_several_edits_there_are_superseded_together(location: Path | str, bundle: Path, source: list[str]) -> None:
    with bound(location) as store:
        there = [add(store, "What food?", answer) for answer in ("soup", "bread", "rice")]
        done = store.import_bundle(bundle, on_conflict="supersede")
        assert done.superseded == dict.fromkeys(there, source[0]) and done.repeated == (source[0],)
        assert [event.kind for event in store.history()] == [*["edit"] * 3, "supersede", "edit"]
        store.undo(source[0])
        assert active(store) == [*there, source[1]]


def test_one_with_the_same_answer_leaves_even_if_another_is_kept(
    location: Path | str, bundle: Path, source: list[str]
) -> None:
    with bound(location) as store:
        soup, bread = add(store, "What food?", "soup"), add(store, "What food?", "bread")
        done = store.import_bundle(bundle, on_conflict="keep")
        assert (done.superseded, done.repeated) == ({bread: source[0]}, (source[0],))
        assert active(store) == [soup, *source]


@pytest.fixture
def contradictory(tmp_path: Path, bundle: Path) -> list[str]:
    """A bundle with its history that contradicts itself."""
    with bound(tmp_path / "source.db") as store:
        ids = [add(store, "What food?", answer) for answer in ("soup", "bread", "cake")]
        store.export_bundle(bundle)
    return ids


def test_a_bundle_that_contradicts_itself_is_refused_and_makes_no_file(
    path: Path, bundle: Path, contradictory: list[str]
) -> None:
    soup, bread, cake = contradictory
    with EditStore(path) as store:
        with pytest.raises(ConflictError, match=f"in the bundle: {soup} 'soup', {bread} 'bread', {cake} 'cake'"):
            store.import_bundle(bundle)
        assert not path.exists()


@pytest.mark.parametrize("is_empty", [True, False])
def test_the_newest_of_a_bundle_wins(
    location: Path | str, bundle: Path, contradictory: list[str], is_empty: bool
) -> None:
    with bound(location) as store:
        there = [] if is_empty else [add(store, "What food?", "rice")]
        done = store.import_bundle(bundle, on_conflict="supersede")
        chain = [*there, *contradictory]
        assert done.superseded == dict(pairwise(chain))
        (found,) = done.contradictions
        assert (list(found.there), list(found.imported)) == (there, contradictory)
        for edit_id in reversed(chain):
            assert active(store) == [edit_id] and store.verify() == ()
            store.undo(edit_id)


def test_an_empty_store_takes_kept_contradictions_with_their_history(
    location: Path | str, bundle: Path, contradictory: list[str], tmp_path: Path
) -> None:
    with bound(location) as store, EditStore(tmp_path / "source.db") as source:
        done = store.import_bundle(bundle, on_conflict="keep")
        assert [list(found.imported) for found in done.contradictions] == [contradictory]
        assert state(store) == state(source) and store.contradictions() == source.contradictions()


def test_a_copy_of_repeated_edits_stays_a_copy(location: Path | str, bundle: Path, tmp_path: Path) -> None:
    with bound(tmp_path / "source.db") as source, bound(location) as store:
        ids = [add(source, "What food?", "soup"), add(source, "What food?", "soup")]
        source.export_bundle(bundle)
        assert store.import_bundle(bundle, on_conflict="supersede") == Imported(added=tuple(ids))
        assert state(store) == state(source)


def test_a_refusal_lists_at_most_ten_questions(path: Path, bundle: Path, tmp_path: Path) -> None:
    with bound(tmp_path / "source.db") as source, bound(path) as store:
        for number in range(12):
            add(source, f"Question {number}?", "yes")
            add(store, f"question {number}", "no")
        source.export_bundle(bundle)
        with pytest.raises(ConflictError, match=r"'Question 9\?'.* and 2 more\.") as caught:
            store.import_bundle(bundle)
        assert "Question 10?" not in str(caught.value)


def test_another_writer_between_the_check_and_the_import(
    location: Path | str, bundle: Path, source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edits are compared again under the write lock."""
    with bound(location) as store, bound(location) as other:
        add(store, "Where is it?", "here")
        check = other._database.writing

        def late() -> object:
            monkeypatch.undo()
            add(store, "What food?", "soup")
            return check()

        monkeypatch.setattr(other._database, "writing", late)
        with pytest.raises(ConflictError, match="'soup'"):
            other.import_bundle(bundle)
        assert len(store) == 2


def test_another_model_is_named_before_a_contradiction(path: Path, bundle: Path, source: list[str]) -> None:
    with EditStore(path) as store:
        store.bind("c" * 64, "e" * 64, backbone="blip2", editor="liveedit")
        add(store, "What food?", "soup")
    with EditStore(path) as store, pytest.raises(StoreError, match=f"{BACKBONE[:12]}.*Nothing was imported"):
        store.import_bundle(bundle)


def test_an_unknown_choice_is_refused(path: Path, bundle: Path, source: list[str]) -> None:
    with bound(path) as store, pytest.raises(InvalidInputError, match=r"'merge'\. Give one of refuse, supersede, keep"):
        store.import_bundle(bundle, on_conflict="merge")  # pyright: ignore[reportArgumentType]


def test_a_purged_or_repeated_question_is_no_contradiction(location: Path | str) -> None:
    with bound(location) as store:
        purged = add(store, "What food?", "soup")
        add(store, "what food", "bread")
        assert len(store.contradictions()) == 1
        store.purge(purged)
        add(store, "What food", "Bread!")
        for image in (BOWL, None):
            store.add(dataclasses.replace(about("What food?", "rice"), image_sha256=image), make_expert())
        assert store.contradictions() == ()
