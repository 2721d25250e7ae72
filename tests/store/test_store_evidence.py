"""What an edit did, kept with it; and edits of the same question."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from edit_examples import bound, make_edit, make_expert

from liveedit.errors import InvalidInputError, NotFoundError, OvertakenError
from liveedit.store.evidence import (
    Collision,
    EarlierEdit,
    Evidence,
    LocalityProbe,
    Rephrased,
    evidence_from_json,
    evidence_to_json,
)
from liveedit.store.records import NewEdit
from liveedit.store.store import EditStore

EVIDENCE = Evidence(
    supersedes=("0a0b0c0d",),
    store_bytes=7744,
    rephrasings=(Rephrased("Which?", "no", "RED ", True), Rephrased("Whose \U0001f9e2?", "no", "no", False)),
    locality=(LocalityProbe("Why?", "f" * 64, "a", "a", True), LocalityProbe("When?", None, "b", "c", False)),
    earlier_edits=(EarlierEdit("01234567", "x", "x", True),),
    collisions=(Collision("01234567", 0.25, 1 / 3, False, True),),
)


@pytest.fixture
def opened(location: Path | str) -> Iterator[EditStore]:
    with bound(location) as store:
        yield store


def about(prompt: str, picture: str | None = None, evidence: Evidence | None = None) -> NewEdit:
    return dataclasses.replace(make_edit(), prompt=prompt, image_sha256=picture, evidence=evidence)


def test_evidence_is_kept_with_the_edit(opened: EditStore, tmp_path: Path) -> None:
    with_it, without = (opened.add(about("?", None, given), make_expert()) for given in (EVIDENCE, None))
    assert opened.get(with_it.id).evidence == EVIDENCE == opened.list()[0].evidence
    assert opened.get(without.id).evidence is None
    assert opened.verify() == ()
    opened.export_bundle(tmp_path / "bundle")
    with EditStore(tmp_path / "other.db") as other:
        other.import_bundle(tmp_path / "bundle")
        assert other.get(with_it.id) == with_it
        assert [edit.id for edit in other.same_question(None, "?")] == [with_it.id, without.id]
        assert other.verify() == ()


def test_what_evidence_counts() -> None:
    assert (EVIDENCE.rephrasings_taken, EVIDENCE.locality_kept, EVIDENCE.earlier_kept) == (1, 1, 1)
    assert evidence_from_json(evidence_to_json(EVIDENCE)) == EVIDENCE
    assert evidence_from_json('{"store_bytes": 5, "of a later version": 1}') == Evidence(store_bytes=5)


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [
        ("no", "Red.", False),
        ("no", "No", False),
        ("no", "nored", True),
        ("no", "", True),
        ("", "red", False),
        ("", "nored", None),
        ("", "", None),  # As after a purge.
    ],
)
def test_what_is_neither_the_edit_s_answer_nor_the_one_before_is_broken(
    before: str, after: str, broken: bool | None
) -> None:
    asked = (
        Rephrased("Which?", before, after, False),
        LocalityProbe("Why?", None, before, after, False),
        EarlierEdit("01234567", before, after, False),
    )
    assert [one.is_broken("red") for one in asked] == [broken] * 3
    evidence = Evidence(rephrasings=asked[:1], locality=asked[1:2], earlier_edits=asked[2:])
    told = evidence.to_dict("red")
    assert [told[name][0]["broken"] for name in ("rephrasings", "locality", "earlier_edits")] == [broken] * 3
    assert told["rephrasings"][0] == {**dataclasses.asdict(asked[0]), "broken": broken}
    assert "broken" not in evidence_to_json(evidence), "it is derived, not stored"


def test_evidence_that_cannot_be_stored_stores_nothing(opened: EditStore) -> None:
    with pytest.raises(InvalidInputError, match="not valid Unicode"):
        opened.add(about("?", None, Evidence(rephrasings=(Rephrased("\ud800", "", "", True),))), make_expert())
    opened.add(about("?", None, Evidence(rephrasings=(Rephrased("zero \x00", "", "", True),))), make_expert())
    assert len(opened) == 1 and opened.verify() == ()


def test_damaged_evidence_is_named_and_spoils_nothing_else(path: Path) -> None:
    with bound(path) as opened:
        edit = opened.add(about("What?", None, EVIDENCE), make_expert())
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute('UPDATE edits SET evidence = \'{"store_bytes": "many"}\'')
        assert opened.get(edit.id).evidence is None
        problem, record = opened.verify()
        assert f"The evidence of edit '{edit.id}' is damaged" in problem and "store_bytes" in problem
        assert f"The record of edit '{edit.id}' is damaged" in record
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE edits SET evidence = NULL, prompt = 'Which?'")
        assert f"The question of edit '{edit.id}' does not have its digest." in opened.verify()


def test_the_same_question(opened: EditStore) -> None:
    one, other = "1" * 64, "2" * 64
    ids = [
        opened.add(about(*question), make_expert()).id
        for question in (("What is it?", one), ("What is it?", other), ("What is it?", None), ("What is\tthat?", one))
    ]
    asked = [(one, " What is\n it? "), (other, "What is it?"), (None, "What is it?"), (one, "What is that?")]
    assert [[edit.id for edit in opened.same_question(*question)] for question in asked] == [[found] for found in ids]
    assert [edit.id for edit in opened.same_question(one, "¿WHAT is it")] == [ids[0]]
    assert opened.same_question(one, "What is its?") == ()
    opened.undo(ids[0])
    assert opened.same_question(one, "What is it?") == ()


def test_the_same_question_is_found_by_an_index(path: Path) -> None:
    with bound(path) as opened:
        opened.add(make_edit(), make_expert())
    with closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT id FROM edits WHERE revision_removed IS NULL AND question_sha256 = 'x'"
        ).fetchall()
    assert "edits_by_question" in plan[0][3]


def test_an_edit_that_is_to_be_alone(location: Path | str) -> None:
    """Two writers have both seen one old edit; the second to come finds the first one's in its place."""
    with bound(location) as first, bound(location) as second:
        old = first.add(about("Who?"), make_expert(0)).id
        stranger = first.add(about("Why?"), make_expert(1)).id
        new = first.add(about(" Who?"), make_expert(2), supersedes=[old], alone=True).id
        with pytest.raises(NotFoundError, match="already superseded"):
            second.add(about("Who?"), make_expert(3), supersedes=[old], alone=True)
        with pytest.raises(OvertakenError, match=f"same question became active meanwhile: {new}"):
            second.add(about("Who? "), make_expert(3), alone=True)
        assert [edit.id for edit in first.list()] == [stranger, new] and first.latest_revision() == 3
        assert second.add(about("Who?"), make_expert(4)).is_active, "others may have several"
        assert first.verify() == ()


def test_purging_takes_an_edit_out_of_the_evidence_of_others(opened: EditStore) -> None:
    gone = opened.add(about("Who?"), make_expert(0)).id
    kept = opened.add(about("Why?"), make_expert(1)).id
    asked = tuple(EarlierEdit(edit_id, f"before {edit_id}", f"after {edit_id}", False) for edit_id in (gone, kept))
    met = Collision(gone, 0.5, 0.5, False, True)
    beside = opened.add(about("When?", None, Evidence(earlier_edits=asked, collisions=(met,))), make_expert(2)).id
    rephrased = Rephrased("Whom?", "the old answer", "the new answer", True)
    instead = opened.add(
        dataclasses.replace(
            about("Who?", None, Evidence(supersedes=(gone,), rephrasings=(rephrased,))), answer_before="the old answer"
        ),
        make_expert(3),
        supersedes=[gone],
    ).id
    opened.purge(gone)
    evidence = opened.get(beside).evidence
    assert evidence == Evidence(earlier_edits=(EarlierEdit(gone, "", "", False), asked[1]), collisions=(met,)), (
        "what it said is gone, that it was met stays"
    )
    after = opened.get(instead)
    assert after.answer_before is None and after.evidence is not None
    assert after.evidence.rephrasings == (dataclasses.replace(rephrased, answer_before=""),)
    assert opened.verify() == ()
    opened.purge(beside)
    assert opened.get(beside).evidence is None and opened.verify() == ()
