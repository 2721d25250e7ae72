"""The tests that every reader of an annotation format must pass."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from ..datasets import Reader, RowError, reader_named
from ..datasets.check import check_file
from ..errors import DatasetError
from ..samples import EditCase, ProbeName


class DatasetContract:
    """Subclass this as `Test...` and give `reader` and `rows`."""

    reader: Reader
    """The reader under test."""

    registered: bool = True
    """Whether the reader is registered under its name as an entry point."""

    def rows(self) -> list[dict[str, Any]]:
        """At least two different valid rows of a file; images by paths, which need not exist."""
        raise NotImplementedError("Give rows() in your subclass of the contract.")

    # -- fixtures ----------------------------------------------------------------------------------------

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A file with the valid rows."""
        return self.write(tmp_path / "rows.json", self.rows())

    @staticmethod
    def write(file: Path, rows: Any) -> Path:
        """Write rows as JSON."""
        file.write_text(json.dumps(rows), encoding="utf-8")
        return file

    # -- tests -------------------------------------------------------------------------------------------

    def test_the_name_leads_to_the_reader(self) -> None:
        """By its entry point, in any case of letters."""
        assert self.reader.name and self.reader.about
        if self.registered:
            assert reader_named(self.reader.name) is reader_named(self.reader.name.upper()) is self.reader

    def test_rows_become_cases_in_their_order(self, file: Path) -> None:
        """One case per row, with an answer, known probe names and distinct ids; reading again gives equal cases."""
        cases = self.reader.read(file)
        assert len(cases) == len(self.rows()) >= 2
        assert all(isinstance(case, EditCase) for case in cases)
        assert len({case.id for case in cases}) == len(cases)
        for case in cases:
            assert case.edit.question.prompt.strip() and case.edit.answer.strip() and case.answer_type
            assert {probe.name for probe in case.probes} <= set(get_args(ProbeName))
        assert self.reader.read(file) == cases
        assert [self.reader.read(self.write(file, [row]))[0].edit for row in self.rows()] == [it.edit for it in cases]

    def test_image_paths_are_resolved_against_the_image_folder(self, file: Path, tmp_path: Path) -> None:
        """By default against the file's own folder. No image is opened."""
        for folder, given in ((file.parent, None), (tmp_path / "images", tmp_path / "images")):
            for case in self.reader.read(file, given):
                for question in (case.edit.question, *(probe.question for probe in case.probes)):
                    if question.image is not None:
                        assert folder in Path(str(question.image)).parents

    def test_a_valid_file_has_no_problems(self, file: Path) -> None:
        """And every key is known to the reader."""
        report = check_file(self.reader, file)
        assert report.ok and report.rows_read == report.rows == len(self.rows())
        assert report.unused_keys == {}
        probes = Counter(probe.name for case in self.reader.read(file) for probe in case.probes)
        assert report.probes == probes

    def test_a_missing_key_is_named_or_optional(self, file: Path) -> None:
        """Without a key a row is still a case, or the error names row and key. Nothing else is raised."""
        first, second, *_ = self.rows()
        required = 0
        for key in second:
            self.write(file, [first, {name: value for name, value in second.items() if name != key}])
            try:
                assert len(self.reader.read(file)) == 2
            except RowError as error:
                required += 1
                assert error.row == 1 and error.key is not None
                assert str(file) in str(error)
        assert required > 0, "a reader has at least one required key"

    @pytest.mark.parametrize("value", [None, [], {}, [1], {"a": []}, 1.5, True, "", "\ud800", "x" * 5000])
    def test_values_of_any_type_are_read_or_refused(self, file: Path, value: Any) -> None:
        """A wrong value is a `RowError` with its row; no other exception leaves the reader."""
        first, second, *_ = self.rows()
        for key in second:
            problems: list[RowError] = []
            self.write(file, [first, {**second, key: value}])
            cases = self.reader.read(file, on_error=problems.append)
            assert len(cases) == (1 if problems else 2)
            assert all(problem.row == 1 for problem in problems)
            assert all(str(pickle.loads(pickle.dumps(problem))) == str(problem) for problem in problems)

    @pytest.mark.parametrize("content", ["", "{", "3", '{"a": 1}', "[1, 2]", "[null]", "\x00"])
    def test_other_json_and_broken_json_are_refused(self, file: Path, content: str) -> None:
        """With an error that names the file."""
        file.write_text(content, encoding="utf-8")
        with pytest.raises(DatasetError, match=file.name):
            self.reader.read(file)

    def test_equal_ids_are_refused(self, file: Path) -> None:
        """Only if the format has ids of its own; otherwise rows are numbered."""
        first, second, *_ = self.rows()
        self.write(file, [{**first, "id": "same"}, {**second, "id": "same"}])
        problems: list[RowError] = []
        cases = self.reader.read(file, on_error=problems.append)
        assert len(cases) == 2 - len(problems) and len({case.id for case in cases}) == len(cases)
