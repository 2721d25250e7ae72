"""Which cases are selected, and how the selection is named and told apart from the whole file."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from liveedit.backbones import Backbone
from liveedit.datasets.sources import NamedData, open_data
from liveedit.errors import InvalidInputError
from liveedit.evaluation.provenance import make_provenance
from liveedit.samples import Edit, EditCase, Question

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def case(name: str, subject: str | None) -> EditCase:
    return EditCase(name, Edit(Question(f"Question {name}?", None, subject), "answer"))


def test_the_first_case_of_each_subject_stays_and_all_without_one() -> None:
    cases = [case("0", "A"), case("1", None), case("2", "B"), case("3", "A"), case("4", None), case("5", "B")]
    found = NamedData("rows", tuple(cases), (), 2).with_distinct_subjects()
    assert [one.id for one in found.cases] == ["0", "1", "2", "4"]
    assert (found.name, found.selection, found.left_out) == ("rows, distinct subjects", "distinct subjects", 2)


def test_data_without_subjects_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="names no subjects"):
        NamedData("rows", (case("0", None),), ()).with_distinct_subjects()


def test_the_selection_changes_the_digest_of_the_data(tmp_path: Path, random_backbone: Backbone) -> None:
    rows = [
        {"subject": subject, "src": f"Who is {n}?", "rephrase": f"{n}?", "alt": "x", "loc": "y", "loc_ans": "z"}
        for n, subject in enumerate("AAB")
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    whole, distinct = open_data(f"zsre:{file}"), open_data(f"zsre:{file}", distinct_subjects=True)
    assert (len(whole.cases), len(distinct.cases)) == (3, 2)
    provenances = [make_provenance(random_backbone, found.files, found.selection) for found in (whole, distinct)]
    assert provenances[0].data_digest != provenances[1].data_digest
    assert provenances[0].data_digest == make_provenance(random_backbone, whole.files).data_digest


def test_the_real_file_has_711_subjects() -> None:
    file = DATA / "zsre" / "zsre_wise_1000.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not under LIVEEDIT_DATA ({DATA})")
    found = open_data(f"zsre:{file}", distinct_subjects=True)
    counts = Counter(case.edit.question.subject for case in found.cases)
    assert len(found.cases) + found.left_out >= 711 - 5 and max(counts.values()) == 1
