"""What is compared between a report, its rows and their raw answers; and the reports of the bench and of robustness."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, TypeVar

from ..progress import Progress, no_progress
from .by_order import edit_order
from .case_intervals import case_intervals
from .harnesses import measuring as harness_rows
from .harnesses.report import ability_text, changed_documents
from .lines import Row
from .protocol import Measurement, RawAnswer, answers_file, raw_cases, scored_again, summarize_measurements
from .provenance import PACKAGES, ROW_DIGEST, file_digest, sealed
from .recurring import recurring_edits
from .report import report_texts
from .robustness import measuring as robustness
from .robustness.report import robustness_text

ROWS: Final = "rows.json"
REPORT: Final = "report.md"

_NO_FIGURES: Final = frozenset(
    ("editor", "backbone", "data", "edits", "seed", "status", "provenance", "answers_digest", ROW_DIGEST)
)
"""What in a row is not measured."""

_DRAWN: Final = re.compile(r"^(?:!\[.*\]\(.*\.png\)\n\n\*.*\*|No figures: .*)\n\n", re.MULTILINE)
_SHOWN: Final = 40
"""Characters of a line that are shown on either side of the first one that differs."""

Made = TypeVar("Made")

ScoreAgain = Callable[[Sequence[Row], Sequence[RawAnswer]], tuple[Sequence[Row], Sequence[Row]]]
"""Makes, of the rows of a file and their raw answers, what each row must have and what each answer must have."""


@dataclass(frozen=True)
class Remark:
    """Something about a file, whose path is relative to the folder that is verified."""

    file: str
    text: str


@dataclass
class Verification:
    """What disagrees in a folder, what could not be checked and why, and how many rows and answers were checked."""

    folder: Path
    progress: Progress = no_progress
    """Called with the number of files whose answers were scored again, and the number of all."""
    rows: int = 0
    answers: int = 0
    disagreements: list[Remark] = field(default_factory=list)
    unchecked: list[Remark] = field(default_factory=list)
    unscored: set[str] = field(default_factory=set)
    """What of the rows is not computed from raw answers."""

    def disagree(self, file: Path, text: str) -> None:
        """Record a disagreement."""
        self.disagreements.append(Remark(self.name(file), text))

    def skip(self, file: Path, why: str) -> None:
        """Record what could not be checked."""
        self.unchecked.append(Remark(self.name(file), why))

    def name(self, file: Path) -> str:
        """The path of a file, relative to the folder."""
        return file.relative_to(self.folder).as_posix()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        remarks = {"disagreements": self.disagreements, "unchecked": self.unchecked}
        listed = {name: [asdict(one) for one in found] for name, found in remarks.items()}
        return {"rows": self.rows, "answers": self.answers, **listed, "ok": not self.disagreements}


def verify_bench(found: Verification, content: Mapping[str, Any]) -> None:
    """Verify a folder of the bench. content: that of its rows.json."""
    rows, report = content["rows"], content["report"]
    check_reported(found, rows, check_files(found, "results/*.json", bench_again))
    texts = made(found, lambda: report_texts(rows, report["title"], report["published"]))
    check_texts(found, texts or {})


def bench_again(rows: Sequence[Row], answers: Sequence[RawAnswer]) -> tuple[Sequence[Row], Sequence[Row]]:
    """A `ScoreAgain` for a row of the bench."""
    (row,) = rows
    cases, size = raw_cases(answers), row["edits"]
    groups = [scored_again(cases[start : start + size]) for start in range(0, len(cases), size)]
    # Rows of earlier versions have no figures by case and by place.
    further = {"intervals": case_intervals, "order": edit_order}
    added = {name: figures(groups) for name, figures in further.items() if name in row}
    return [{**summarize_measurements(groups), "recurring": recurring_edits(groups), **added}], scores_again(groups)


def scores_again(measurements: Iterable[Measurement]) -> list[Row]:
    """What each raw answer must have."""
    scores = [score for measurement in measurements for _, score in measurement.scores]
    return [{"exact_match": score.exact, "broken": score.broken} for score in scores]


def verify_robustness(found: Verification, content: Mapping[str, Any]) -> None:
    """Verify a folder of the robustness measurement. content: that of its rows.json."""
    rows = content["rows"]
    for done, row in enumerate(rows, 1):
        answers = robustness.answers_file(found.folder, row["editor"], row["edits"], row["seed"])
        _check_rows(found, found.folder / ROWS, [row], answers, _robustness_again)
        found.progress(done, len(rows))
    _note_origins(found, rows)
    text = made(found, lambda: robustness_text(rows))
    check_texts(found, {} if text is None else {REPORT: text})


def verify_general_ability(found: Verification, content: Mapping[str, Any]) -> None:
    """Verify a folder of the general ability measurement. content: that of its rows.json.

    The scores of a task are the harness's own. What is compared with its samples is which documents are scored
    otherwise.
    """
    rows, file = content["rows"], found.folder / ROWS
    for done, row in enumerate(rows, 1):
        found.rows += 1
        _check_digest(found, file, row)
        kept = harness_rows.row_file(found.folder, row["column"])
        one = made(found, lambda kept=kept: json.loads(kept.read_text(encoding="utf-8")), kept)
        for text in differences(row, one or {}):
            found.disagree(file, f"{row['column']}, by {found.name(kept)}: {text}")
        samples = harness_rows.samples_file(found.folder, row["column"])
        if not samples.is_file():
            found.skip(samples, "is missing")
        elif file_digest(samples) != row["samples_digest"]:
            found.disagree(samples, f"was changed after it was written: {ROWS} has another digest of it")
        else:
            found.answers += len(harness_rows.read_samples(found.folder, row["column"]))
        found.progress(done, len(rows))
    changed = made(found, lambda: changed_documents(found.folder))
    for text in differences(content["changed"], changed or {}):
        found.disagree(file, f"changed, by the samples: {text}")
    _note_origins(found, rows)
    text = made(found, lambda: ability_text(rows, content["changed"]))
    check_texts(found, {} if text is None else {REPORT: text})


def _robustness_again(rows: Sequence[Row], answers: Sequence[RawAnswer]) -> tuple[Sequence[Row], Sequence[Row]]:
    counts, verdicts = robustness.scored_again(answers)
    return [counts], [{"verdict": verdict, "broken": verdict == "broken"} for verdict in verdicts]


# -- rows and raw answers ------------------------------------------------------------------------------------


def check_files(found: Verification, pattern: str, again: ScoreAgain) -> dict[Path, list[Row]]:
    """Compare the rows of the files that match a pattern with the raw answers beside them; returns the rows."""
    kept: dict[Path, list[Row]] = {}
    files = sorted(found.folder.glob(pattern))
    for done, file in enumerate(files, 1):
        content = made(found, lambda file=file: json.loads(file.read_text(encoding="utf-8")), file)
        kept[file] = content if isinstance(content, list) else [] if content is None else [content]
        _check_rows(found, file, kept[file], answers_file(file), again)
        found.progress(done, len(files))
    return kept


def _check_rows(found: Verification, file: Path, rows: Sequence[Row], answers: Path, again: ScoreAgain) -> None:
    """Compare the rows of a file with their digests and raw answers."""
    found.rows += len(rows)
    for row in rows:
        _check_digest(found, file, row)
    if not answers.is_file():
        found.skip(file, f"there are no raw answers: {found.name(answers)} is missing")
        return
    if file_digest(answers) not in {row.get("answers_digest", file_digest(answers)) for row in rows}:
        found.disagree(answers, f"was changed after it was written: {found.name(file)} has another digest of it")
    # Answers are written as they are, and may have characters at which `splitlines` would part them.
    raw = made(found, lambda: [json.loads(line) for line in answers.read_text("utf-8").split("\n") if line], answers)
    if raw and "about" not in raw[0]:
        found.skip(answers, "an earlier version wrote it, without what is needed to score its answers again")
        return
    scored = None if raw is None else made(found, lambda: again(rows, raw), answers)
    if raw is None or scored is None:
        return
    of_rows, of_answers = scored
    found.answers += len(raw)
    for number, (one, wanted) in enumerate(zip(raw, of_answers, strict=True), 1):
        for text in differences(one, wanted):
            found.disagree(answers, f"line {number}, scored again: {text}")
    for row, wanted in zip(rows, of_rows, strict=True):
        for text in differences(row, wanted):
            found.disagree(file, f"{_named(row)}, by its raw answers: {text}")
        found.unscored |= row.keys() - wanted.keys() - _NO_FIGURES


def _check_digest(found: Verification, file: Path, row: Row) -> None:
    if ROW_DIGEST not in row:
        found.skip(file, f"{_named(row)}: an earlier version wrote it, without a digest")
    elif sealed(row)[ROW_DIGEST] != row[ROW_DIGEST]:
        found.disagree(file, f"{_named(row)} was changed after it was written: its digest is another")


def check_reported(found: Verification, rows: Sequence[Row], kept: Mapping[Path, Sequence[Row]]) -> None:
    """Compare the rows of rows.json with those of the files that they were read from."""
    files = [(file, one) for file, several in kept.items() for one in several]
    for row in rows:
        _check_digest(found, found.folder / ROWS, row)
        same = {file: list(_changed(one, row)) for file, one in files if _identity(one) == _identity(row)}
        if not same:
            found.rows += ROW_DIGEST in row
            how = ", so that its digest alone was checked" if ROW_DIGEST in row else ""
            found.skip(found.folder / ROWS, f"{_named(row)}: there is no file with this row{how}")
        elif all(same.values()):
            file, texts = same.popitem()
            for text in texts:
                found.disagree(found.folder / ROWS, f"{_named(row)}, by {found.name(file)}: {text}")
    reported = {_identity(row) for row in rows}
    for file, one in files:
        if _identity(one) not in reported:
            found.skip(file, f"{_named(one)} is not in the report")
    _note_origins(found, rows)


def _note_origins(found: Verification, rows: Sequence[Row]) -> None:
    """Note what no answer gives, rows of uncommitted code, and rows of several commits, packages or devices."""
    file, records = found.folder / ROWS, [row.get("provenance") or {} for row in rows]
    if found.unscored:
        listed = ", ".join(sorted(found.unscored))
        found.skip(file, f"{listed}: not in the raw answers, compared with the digests of the rows alone")
    if dirty := sum(bool(record.get("dirty")) for record in records):
        found.skip(file, f"{dirty} of {len(rows)} rows were measured with uncommitted changes: no commit has that code")
    origins = {"commit": [record.get("git_sha") for record in records]}
    origins |= {"device": [record.get("device") for record in records]}
    for name in ("python", *PACKAGES):
        origins[f"version of {name}"] = [(record.get("versions") or {}).get(name) for record in records]
    for what, values in origins.items():
        counts = Counter(value or "not recorded" for value in values)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({count} rows)" for value, count in counts.items())
            found.skip(file, f"the rows are of more than one {what}: {listed}")
        elif "not recorded" in counts:
            found.skip(file, f"the rows do not record their {what}")


def _changed(kept: Row, row: Row) -> Iterator[str]:
    """What of the row in a file is another in rows.json, where it may have more and then has another digest."""
    return differences(row, {name: value for name, value in kept.items() if name != ROW_DIGEST})


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("backbone", "data", "editor", "edits", "seed"))


def _named(row: Row) -> str:
    backbone, data, editor, edits, seed = _identity(row)
    return f"{backbone}, {data}: {editor} at {edits} edits, seed {seed}"


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """A sentence for each value of `wanted` that is another in `found`, which may have more at its top level."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for name in wanted if not path else dict.fromkeys((*wanted, *found)):
            yield from differences(found.get(name), wanted.get(name), f"{path}.{name}" if path else str(name))
    elif json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        yield f"{path} is {json.dumps(found)} and should be {json.dumps(wanted)}"


# -- the report ----------------------------------------------------------------------------------------------


def made(found: Verification, make: Callable[[], Made], file: Path | None = None) -> Made | None:
    """What is made of a file (rows.json by default); None if it is damaged, which is a disagreement."""
    try:
        return make()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found.disagree(file or found.folder / ROWS, f"cannot be used ({type(error).__name__}: {error})")
        return None


def check_texts(found: Verification, wanted: Mapping[str, str]) -> None:
    """Compare the files of a report with what its rows make. Figures are not drawn again."""
    for name, text in wanted.items():
        file = found.folder / name
        if not file.is_file():
            found.skip(file, "is missing")
            continue
        given = file.read_text(encoding="utf-8")
        if name == REPORT:
            given = _from_title(found, _DRAWN.sub("", given), text.partition("\n")[0])
        for line in _other_lines(given, text):
            found.disagree(file, line)
    for figure in sorted(found.folder.glob("*.png")):
        found.skip(figure, "figures are not drawn again")


def _from_title(found: Verification, given: str, title: str) -> str:
    """The report from its title on: examples of a demonstration stand before it."""
    before, line, after = f"\n{given}".partition(f"\n{title}\n")
    if not line:
        return given
    if before:
        found.skip(found.folder / REPORT, f"what stands before {title!r} is not made of rows")
    return f"{title}\n{after}"


def _other_lines(given: str, wanted: str) -> Iterator[str]:
    """A sentence for each line that differs."""
    have, need = given.splitlines(), wanted.splitlines()
    for kind, start, end, first, last in SequenceMatcher(None, have, need, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        for line, other in zip_longest(have[start:end], need[first:last]):
            if other is None:
                yield f"has {line!r}, which the rows do not give"
            elif line is None:
                yield f"lacks {other!r}, which the rows give"
            else:
                shorter = min(len(line), len(other))
                place = next((place for place in range(shorter) if line[place] != other[place]), shorter)
                shown, right = (text[max(0, place - _SHOWN) : place + _SHOWN] for text in (line, other))
                yield f"has {shown!r} and should have {right!r}"
