"""A report of bench rows: tables, figures and the rows themselves, in one folder.

report.md    to read: figures, tables, where the rows come from
table.md     the tables alone
table.tex    the tables for a paper (needs the booktabs package)
table.csv    one line per row, unrounded
rows.json    {"rows": rows, as the bench returned them, "report": what the report was made with}
*.png        the figures, if matplotlib is installed
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import InvalidInputError
from ..files import write_text
from .lines import COMPLETE, Line, Row, lines_of, metric_names
from .plots import write_plots
from .plotting import PlotsUnavailableError, plots_markdown
from .published import published_table
from .report_tables import (
    answer_type_table,
    case_interval_table,
    cost_table,
    ends_table,
    interval_table,
    main_table,
    passage_table,
    recurring_table,
)
from .table import Table, markdown_text

_SETTING = ("editor", "backbone", "data", "edits", "seed", "status")
_QUANTITIES = (
    ("milliseconds_per_edit", ("median", "p90")),
    ("refine_steps", ("median", "mean", "max", "refined")),
    ("routing", ("precision", "recall")),
)
_SCORES = ("teacher_forced", "exact_match", "contains", "f1", "broken", "count", "left_out")


BENCH: Final = "bench"
"""What rows.json says that it is the report of."""


def write_report(
    rows: Sequence[Row], folder: str | Path, *, title: str = "Lifelong editing", published: bool = False
) -> Path:
    """Write the report of `rows` into `folder` and return the path of its report.md.

    Without matplotlib the report has no figures, and says so. published: add the paper's values, in a table of
    their own. Raises `InvalidInputError` for rows that cannot be reported; nothing is written then.
    """
    lines, folder = lines_of(rows), Path(folder)
    files = {"rows.json": _json(rows, {"of": BENCH, "title": title, "published": published})}
    folder.mkdir(parents=True, exist_ok=True)
    files |= report_texts(rows, title, published, _figures(lines, folder))
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / "report.md"


def report_texts(rows: Sequence[Row], title: str, published: bool, figures: Sequence[str] = ()) -> dict[str, str]:
    """The files of the report that are made of rows, by name. figures: their Markdown, for report.md."""
    lines = lines_of(rows)
    tables = _tables(lines, title)
    parts = [f"# {markdown_text(title)}", *figures, *(table.markdown() for table in tables)]
    if published:
        parts.append(published_table({line.edits for line in lines}).markdown())
    parts.append(provenance_markdown(lines))
    return {"table.csv": rows_csv(rows, metric_names(lines)), **table_texts(tables), "report.md": joined(parts)}


def table_texts(tables: Sequence[Table]) -> dict[str, str]:
    """The files with the tables alone, by name."""
    return {
        "table.md": "\n".join(table.markdown() for table in tables),
        "table.tex": "% Needs \\usepackage{booktabs}.\n" + "\n".join(table.latex() for table in tables),
    }


def joined(parts: Iterable[str]) -> str:
    """The parts of a Markdown document; empty ones are left out."""
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def render(rows: Sequence[Row], *, title: str = "Lifelong editing") -> Table:
    """The main table, which a rich console prints."""
    return main_table(lines_of(rows), title)


def _tables(lines: Sequence[Line], title: str) -> list[Table]:
    candidates = (
        main_table(lines, title),
        answer_type_table(lines),
        interval_table(lines),
        case_interval_table(lines),
        ends_table(lines),
        passage_table(lines),
        recurring_table(lines),
        cost_table(lines),
    )
    return [table for table in candidates if table is not None]


def _figures(lines: Sequence[Line], folder: Path) -> list[str]:
    try:
        return plots_markdown(write_plots(lines, folder))
    except PlotsUnavailableError as error:
        return [f"No figures: {error}"]


def _json(rows: Sequence[Row], report: Row) -> str:
    try:
        return json.dumps({"rows": list(rows), "report": report}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The rows cannot be written as JSON ({error}). Give plain numbers, texts, lists and mappings, "
            "and null in place of a value that is not a number."
        ) from error


def rows_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Rows of the bench as CSV, unrounded; names: the metrics."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    quantities = [f"{key}.{inner}" for key, inners in _QUANTITIES for inner in inners]
    scores = [f"{name}.{score}" for name in names for score in _SCORES]
    writer.writerow([*_SETTING, *quantities, "store_bytes_per_edit", *scores])
    for row in rows:
        writer.writerow(
            [
                *(row[key] for key in _SETTING),
                *((row.get(key) or {}).get(inner) for key, inners in _QUANTITIES for inner in inners),
                row.get("store_bytes_per_edit"),
                *(row["metrics"].get(name, {}).get(score) for name in names for score in _SCORES),
            ]
        )
    return stream.getvalue()


def provenance_markdown(lines: Sequence[Line]) -> str:
    """Which code, backbone, data, packages and commands the rows come from."""
    origins: dict[str, list[str]] = {}
    mixed: list[str] = []
    for line in lines:
        records = [row.get("provenance") or {} for row in line.rows]
        for row, record in zip(line.rows, records, strict=True):
            who = f"{line.editor} at {line.edits:,} edits, seed {row['seed']}"
            origins.setdefault(origin(record), []).append(who)
        if len({record.get("backbone_digest") for record in records}) > 1:
            mixed.append(f"- The seeds of {line.label} at {line.edits:,} edits ran on different backbone weights.")
    items = [f"- {origin}: {_some(who)}" for origin, who in origins.items()]
    ways = Counter(how for line in lines for row in line.rows for how in ways_of(row.get("provenance") or {}))
    items += [f"- {how}: {_counted(count, 'row')}" for how, count in ways.items()]
    complete = sum(row["status"] == COMPLETE for line in lines for row in line.rows)
    count = sum(line.seeds for line in lines)
    lead = f"{count} rows, {complete} of them complete. Each row's configuration is in rows.json."
    return "\n".join(["## Provenance", "", lead, "", *items, *mixed])


def origin(record: Row) -> str:
    """The code, backbone and data of a row, as Markdown. record: its provenance."""
    sha = record.get("git_sha")
    dirty = record.get("dirty")
    tree = " (uncommitted changes: not recorded)" if dirty is None else " with uncommitted changes" * dirty
    code = f"code {str(sha)[:12]}{tree}" if sha else "code not recorded"
    digests = (
        f"{what} {str(record[key])[:12]}" if record.get(key) else f"{what} not recorded"
        for what, key in (("backbone", "backbone_digest"), ("data", "data_digest"))
    )
    return markdown_text(", ".join((code, *digests)))


def ways_of(record: Row) -> Iterator[str]:
    """The packages and the machine of a row, and its command, as far as they are recorded."""
    if versions := record.get("versions"):
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield markdown_text(f"{named}, on {record['device']} with {_counted(record['threads'], 'thread')}")
    if command := record.get("command"):
        yield f"`{command}`"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _some(who: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(who) - shown} more" if len(who) > shown else ""
    return markdown_text("; ".join(who[:shown]) + more)
