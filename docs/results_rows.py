"""The kept results as data: the entries of docs/results/runs.toml and the rows in the folders beside it."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from liveedit.errors import ConfigError, NotFoundError, issues_of
from liveedit.evaluation.lines import Line, Row, lines_of
from liveedit.experiments.report.averages import in_order

_QUANTITIES = ("milliseconds_per_edit", "refine_steps", "routing")
"""Columns of table.csv with a dot that are no metrics."""

_MEASURED = re.compile(r"(?<![\w.-])\d+(\.\d+ ?%?| ?%)")
_WITHOUT_ROWS = ("attribution.json", "gallery.json")
"""The numbers of figures 6 and 7, and of galleries."""
_DIRTY = " with uncommitted changes"
_CODE = re.compile(rf"^- code ([0-9a-f]{{7}})[0-9a-f]*({_DIRTY})?", re.MULTILINE)


class Run(BaseModel):
    """An entry of runs.toml: a result that is kept, or a table or figure of a paper that was not run.

    folder: below docs/results, with rows.json or table.csv. not_run: why there is none. stands_for: tables and figures
    of the papers. commits: only if neither rows nor report record them. experiment: whose findings are computed, if
    there is no rows.json that says so. published: whose values of the paper are shown. figures: captions by file name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    command: str = Field(min_length=1)
    stands_for: tuple[str, ...] = ()
    folder: str | None = None
    not_run: str | None = None
    commits: tuple[str, ...] = ()
    experiment: str | None = None
    published: Literal["table1", "table2", "table5", "table6"] | None = None
    figures: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.folder is None) == (self.not_run is None):
            raise ValueError("give either folder, with the rows, or not_run, with the reason")
        return self

    @field_validator("notes", "question", "not_run")
    @classmethod
    def _no_figures(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value or ():
            if found := _MEASURED.search(text):
                raise ValueError(f"{found[0]!r} in {text!r} looks measured; the page takes such figures from the rows")
        return value


class Runs(BaseModel):
    """The file runs.toml: introduction and limits as Markdown, and the runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    introduction: str = Field(min_length=1)
    limits: tuple[str, ...] = ()
    run: tuple[Run, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Kept:
    """The rows of a run. source: the file they are in. report: what their findings are made with, if known."""

    lines: tuple[Line, ...]
    source: str
    report: Mapping[str, Any] | None
    commits: tuple[str, ...]
    has_provenance: bool

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for line in self.lines for row in line.rows]


def read_runs(file: Path) -> Runs:
    """The entries. Raises `ConfigError` if one lacks a field, has an unknown one or a figure in its prose."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    try:
        return Runs.model_validate(content)
    except ValidationError as error:
        titles = [entry.get("title", "") for entry in content.get("run", ())]
        issues = re.sub(r"\brun\.(\d+)", lambda found: f"run {titles[int(found[1])]!r}", issues_of(error))
        raise ConfigError(f"{file} cannot be used: {issues}. `Run` in docs/results_rows.py has the keys.") from error


def read_rows(run: Run, folder: Path) -> Kept:
    """The rows of a folder: rows.json if it is there, else table.csv. Figures 6 and 7 and galleries have none, but a
    file of numbers.

    Raises `NotFoundError` if neither is there, `ConfigError` if the commit is not known, or is given and recorded.
    """
    text = folder / "report.md"
    said = text.read_text(encoding="utf-8") if text.is_file() else ""
    rows, source, report = _stored_rows(run, folder)
    recorded = _recorded_commits(rows, said)
    if bool(recorded) == bool(run.commits):
        raise ConfigError(
            f"The run {run.title!r} gives commits = {list(run.commits)}, and rows and report in {folder} record "
            f"{', '.join(recorded) or 'none'}. Give `commits` if none is recorded, and only then."
        )
    lines = in_order(lines_of(rows), _editors(rows)) if rows else ()
    return Kept(lines, source, report, recorded or run.commits, "## Provenance" in said)


def _stored_rows(run: Run, folder: Path) -> tuple[list[Row], str, Mapping[str, Any] | None]:
    """The rows, the name of their file, and what their findings are made with."""
    whole, table = folder / "rows.json", folder / "table.csv"
    if whole.is_file():
        content = json.loads(whole.read_text(encoding="utf-8"))
        return content["rows"], whole.name, content["report"]
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            rows: list[Row] = [_row(entry, table) for entry in csv.DictReader(stream)]
        report = {"of": run.experiment, "labels": _editors(rows)} if run.experiment else None
        return rows, table.name, report
    for numbers in _WITHOUT_ROWS:
        if (folder / numbers).is_file():
            return [], numbers, None
    raise NotFoundError(
        f"The run {run.title!r} has its rows in {folder}, where there is no rows.json, table.csv, "
        f"{' or '.join(_WITHOUT_ROWS)}. Copy that of the report there, or replace `folder` by `not_run` and the reason."
    )


def _recorded_commits(rows: Iterable[Row], report: str) -> tuple[str, ...]:
    """The commits that the rows record, or else their report, in seven digits."""
    records = [row.get("provenance") or {} for row in rows]
    found = [(record["git_sha"][:7], record.get("dirty")) for record in records if record.get("git_sha")]
    named = [sha + _DIRTY * bool(dirty) for sha, dirty in found or _CODE.findall(report)]
    return tuple(dict.fromkeys(named))


def _row(entry: Mapping[str, str], file: Path) -> dict[str, Any]:
    """A line of table.csv as a row of the bench; cells without a value are left out."""
    try:
        row: dict[str, Any] = {name: entry[name] for name in ("editor", "backbone", "data", "status")}
        row |= {"edits": int(entry["edits"]), "seed": int(entry["seed"]), "metrics": {}}
        row["store_bytes_per_edit"] = _number(entry["store_bytes_per_edit"])
        for column, text in entry.items():
            name, dot, inner = column.partition(".")
            if dot and text:
                group = row if name in _QUANTITIES else row["metrics"]
                group.setdefault(name, {})[inner] = _number(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{file} is not the table.csv of a report ({type(error).__name__}: {error}).") from error
    return row


def _number(text: str) -> float | None:
    return None if not text else int(text) if text.isdecimal() else float(text)


def _editors(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["editor"] for row in rows))
