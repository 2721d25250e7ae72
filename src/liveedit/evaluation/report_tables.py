"""The tables of a report. Every cell has three figures: teacher-forced accuracy, exact match and broken answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..samples import GENERALITY
from .lines import Line, answer_types, at_largest, metric_label, metric_names, sections
from .scoring import REPORTED, Spread
from .table import Table

MISSING: Final = "–"
"""The text of a cell without a value."""

CELL_NOTE: Final = (
    "Each cell: teacher-forced token accuracy / exact match of free generation / broken answers, in %. A broken answer "
    "is neither the edit's, nor the unedited model's to the same question, nor another label of its case."
)
_STD_NOTE: Final = "± is the sample standard deviation over seeds."


def main_table(lines: Sequence[Line], title: str) -> Table:
    """One line per editor and number of edits; the columns are the metrics."""
    names = metric_names(lines)
    setting = SettingColumns.of(lines)
    rows = [
        (
            *setting.cells(line),
            *(score_cell(line, name) for name in names),
            str(line.seeds),
            number_cell(line.quantity("milliseconds_per_edit", "median"), line.seeds),
        )
        for line in lines
    ]
    notes = [CELL_NOTE, *_std_note(lines), *setting.notes, *status_notes(lines), *left_out_notes(lines)]
    if "cross_modal" in names:
        notes.append("Cross modal asks for the edited fact without the image: high values are neither good nor bad.")
    header = (*setting.header, *map(metric_label, names), "Seeds", "ms per edit")
    return Table(title, header, tuple(rows), tuple(notes), setting.text_columns, key_columns=len(setting.header))


def answer_type_table(lines: Sequence[Line]) -> Table | None:
    """Reliability and generality by answer type, after the most edits; None without answer types."""
    largest = at_largest(lines)
    occurring = metric_names(largest, by_answer_type=True)
    names = [name for name in ("reliability", *GENERALITY) if name in occurring]
    if not names:
        return None
    setting = SettingColumns.of(largest)
    rows = [
        (
            *setting.cells(line),
            kind,
            *(score_cell(line, name, kind) for name in names),
            str(line.count(names[0], answer_type=kind)),
        )
        for line in largest
        for kind in answer_types([line])
    ]
    header = (*setting.header, "Answer type", *map(metric_label, names), "Samples")
    notes = [CELL_NOTE, *_std_note(largest), *setting.notes, *absence_notes(lines)]
    notes.append(f"Samples: {metric_label(names[0]).lower()} probes over all seeds.")
    return Table("By answer type, after the most edits", header, tuple(rows), tuple(notes), len(setting.header) + 1)


def interval_table(lines: Sequence[Line]) -> Table | None:
    """The 95 % confidence intervals of the means over seeds; None if every line has one seed."""
    several = [line for line in lines if line.seeds > 1]
    if not several:
        return None
    names = metric_names(several)
    setting = SettingColumns.of(several)
    rows = [
        (
            *setting.cells(line),
            *(joined_figures(_interval(line.score(name, score)) for score, _ in REPORTED) for name in names),
            str(line.seeds),
        )
        for line in several
    ]
    notes = (
        "Each cell: 95 % confidence interval of the mean over seeds (Student's t), teacher-forced / exact "
        "match / broken answers, in %. The interval is not limited to 0 and 100.",
        *setting.notes,
    )
    header = (*setting.header, *map(metric_label, names), "Seeds")
    return Table("Confidence intervals", header, tuple(rows), notes, setting.text_columns)


def case_interval_table(lines: Sequence[Line]) -> Table | None:
    """The 95 % confidence intervals over the cases of each run; None if no run has them."""
    runs = [(line, row) for line in lines for row in line.rows if row.get("intervals")]
    if not runs:
        return None
    names = [name for name in metric_names(lines) if any(name in row["intervals"] for _, row in runs)]
    setting = SettingColumns.of(lines)
    rows = [
        (*setting.cells(line), str(row["seed"]), *(_ends(row["intervals"].get(name, {})) for name in names))
        for line, row in runs
    ]
    notes = (
        "Each cell: 95 % confidence interval of the mean over the cases of one run, teacher-forced / exact match / "
        "broken answers, in %. Whole cases are drawn again, 1,000 times (bootstrap, percentiles): this is the spread "
        "that other cases of the same kind would have, beside that over seeds.",
        *setting.notes,
    )
    header = (*setting.header, "Seed", *map(metric_label, names))
    return Table("Confidence intervals over cases", header, tuple(rows), notes, setting.text_columns)


def ends_table(lines: Sequence[Line]) -> Table | None:
    """The first edits of the sequence against the last; None if no run is long enough."""
    runs = [(line, row) for line in lines for row in line.rows if row.get("order")]
    if not runs:
        return None
    setting = SettingColumns.of(lines)
    rows = []
    for line, row in runs:
        first, last = row["order"]["first_edits"], row["order"]["last_edits"]
        change = last["exact_match"] - first["exact_match"]
        count = f"{first['last'] - first['first'] + 1:,}"
        rows.append((*setting.cells(line), str(row["seed"]), count, _place(first), _place(last), f"{change:+.1f}"))
    notes = (
        "Asked after the last edit: the edits' own questions, teacher-forced / exact match / broken answers, in %. "
        "Difference: exact match of the last edits minus that of the first; an editor that forgets has a large one.",
        *setting.notes,
    )
    header = (*setting.header, "Seed", "At each end", "First edits", "Last edits", "Difference")
    return Table("First and last edits", header, tuple(rows), notes, setting.text_columns)


def _ends(scores: Mapping[str, Sequence[float]]) -> str:
    ends = (scores.get(score) for score, _ in REPORTED)
    return joined_figures(MISSING if found is None else f"[{found[0]:.1f}, {found[1]:.1f}]" for found in ends)


def _place(stretch: Mapping[str, float | None]) -> str:
    values = (stretch[score] for score, _ in REPORTED)
    return joined_figures(figure_text(value) for value in values)


_QUANTITIES: Final[tuple[tuple[str, str, str | None], ...]] = (
    ("Median ms per edit", "milliseconds_per_edit", "median"),
    ("p90 ms per edit", "milliseconds_per_edit", "p90"),
    ("Median refine steps", "refine_steps", "median"),
    ("Mean refine steps", "refine_steps", "mean"),
    ("Max refine steps", "refine_steps", "max"),
    ("Edits refined %", "refine_steps", "refined"),
    ("Bytes per edit", "store_bytes_per_edit", None),
    ("Routing precision %", "routing", "precision"),
    ("Routing recall %", "routing", "recall"),
)


_OF_PASSAGES: Final[tuple[tuple[str, str, str | None], ...]] = (
    ("Mean perplexity", "perplexity", "mean"),
    ("Median perplexity", "perplexity", "median"),
    ("Corpus perplexity", "perplexity", "corpus"),
    ("Agreement %", "agreement", None),
)


def cost_table(lines: Sequence[Line]) -> Table | None:
    """Time, memory, refine steps and routing; None if none of these was measured."""
    return _quantity_table("Cost and routing", _QUANTITIES, lines, ())


_RECURRING: Final[tuple[tuple[str, str, str | None], ...]] = (
    ("Subjects", "recurring", "subjects"),
    ("Their edits", "recurring", "edits"),
    ("Latest right %", "recurring", "latest_right"),
    ("Earlier right %", "recurring", "earlier_right"),
    ("Earlier overruled %", "recurring", "earlier_overruled"),
)


def recurring_table(lines: Sequence[Line]) -> Table | None:
    """What became of edits of one subject with different answers; None if there are none."""
    note = (
        "Edits of one subject with different answers, where the questions name it and no relations differ. "
        "Right: the edit's own question gets its answer. Overruled: it gets that of the subject's latest edit."
    )
    return _quantity_table("Subjects with several answers", _RECURRING, lines, (note,))


def passage_table(lines: Sequence[Line]) -> Table | None:
    """Perplexity of edited answers and agreement along unrelated texts; None if neither was measured."""
    note = (
        "Perplexity per token of the model's own tokenizer: mean and median over answers, corpus over all tokens. "
        "Agreement: share of tokens along unrelated texts that the edited and the unedited model choose alike."
    )
    return _quantity_table("Passages", _OF_PASSAGES, lines, (note,))


def _quantity_table(
    title: str, quantities: Sequence[tuple[str, str, str | None]], lines: Sequence[Line], further: tuple[str, ...]
) -> Table | None:
    found = {
        label: [number_cell(line.quantity(key, inner), line.seeds) for line in lines]
        for label, key, inner in quantities
    }
    found = {label: cells for label, cells in found.items() if any(cell != MISSING for cell in cells)}
    if not found:
        return None
    setting = SettingColumns.of(lines)
    rows = tuple((*setting.cells(line), *(cells[i] for cells in found.values())) for i, line in enumerate(lines))
    notes = (*further, "Figures are measured per run; the mean over seeds is shown.", *_std_note(lines), *setting.notes)
    return Table(title, (*setting.header, *found), rows, notes, setting.text_columns)


@dataclass(frozen=True, slots=True)
class SettingColumns:
    """The first columns of a table: backbone and data only if they differ, then editor and edits."""

    backbone: bool
    data: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> SettingColumns:
        """The columns that these lines need."""
        backbones = {line.backbone for line in lines}
        data = {line.data for line in lines}
        fixed = [f"Backbone: {lines[0].backbone}."] if len(backbones) == 1 else []
        fixed += [f"Data: {lines[0].data}."] if len(data) == 1 else []
        return cls(len(backbones) > 1, len(data) > 1, (" ".join(fixed),) if fixed else ())

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        names = ("Backbone",) * self.backbone + ("Data",) * self.data
        return (*names, "Editor", "Edits")

    @property
    def text_columns(self) -> int:
        """How many of the columns are texts: all but the number of edits."""
        return len(self.header) - 1

    def cells(self, line: Line) -> tuple[str, ...]:
        """The cells of a line in these columns."""
        names = (line.backbone,) * self.backbone + (line.data,) * self.data
        return (*names, line.label, f"{line.edits:,}")


def score_cell(line: Line, metric: str, answer_type: str | None = None) -> str:
    """The figures of `REPORTED`, each with its standard deviation if there are several seeds."""
    scores = (line.score(metric, score, answer_type) for score, _ in REPORTED)
    return joined_figures(number_cell(score, line.seeds) for score in scores)


def figure_text(value: float | None, decimals: int = 1) -> str:
    """A figure with this many decimals; `MISSING` if there is none."""
    return MISSING if value is None else f"{value:.{decimals}f}"


def number_cell(spread: Spread | None, seeds: int) -> str:
    """The mean, its standard deviation if known, and the number of seeds if some lack the value."""
    if spread is None:
        return MISSING
    digits = 0 if abs(spread.mean) >= 1000 else 1
    text = f"{spread.mean:,.{digits}f}"
    if spread.std is not None:
        text += f"±{spread.std:,.{digits}f}"
    return text if spread.seeds == seeds else f"{text} ({spread.seeds} of {seeds} seeds)"


def status_notes(lines: Iterable[Line]) -> list[str]:
    """A note for each line of runs that are not complete."""
    return [
        f"Not complete: {line.editor} at {line.edits:,} edits on {line.backbone}, {line.data}: {line.status} "
        f"(seed {', '.join(str(row['seed']) for row in line.rows)}); not averaged with complete runs."
        for line in lines
        if not line.complete
    ]


def left_out_notes(lines: Sequence[Line]) -> list[str]:
    """How many probes were left out, in one note for all editors with the same numbers."""
    same: dict[tuple[str, str, int, str], list[str]] = {}
    for line in lines:
        parts = []
        for name in metric_names([line]):
            if left_out := line.count(name, "left_out"):
                parts.append(f"{metric_label(name).lower()} {left_out:,} of {left_out + line.count(name):,}")
        if parts:
            same.setdefault((*line.section, line.edits, ", ".join(parts)), []).append(line.label)
    several = len(sections(lines)) > 1
    return [
        "Left out because they are in the scope of another edit, over all seeds: "
        + (f"{backbone}, {data}, " if several else "")
        + f"{edits:,} edits ({', '.join(editors)}): {parts}."
        for (backbone, data, edits, parts), editors in same.items()
    ]


def absence_notes(lines: Sequence[Line]) -> list[str]:
    """A note on editors without a run of the most edits of their section."""
    largest = at_largest(lines)
    notes = []
    for section in sections(lines):
        there = [line for line in largest if line.section == section[0].section]
        absent = sorted({line.editor for line in section} - {line.editor for line in there})
        if absent:
            notes.append(f"No run of {there[0].edits:,} edits: {', '.join(absent)}.")
    return notes


def _std_note(lines: Iterable[Line]) -> list[str]:
    return [_STD_NOTE] if any(line.seeds > 1 for line in lines) else []


def _interval(spread: Spread | None) -> str:
    if spread is None or spread.low is None or spread.high is None:
        return MISSING
    return f"[{spread.low:.1f}, {spread.high:.1f}]"


def joined_figures(figures: Iterable[str]) -> str:
    """Several figures in one cell; `MISSING` if all of them are."""
    found = list(figures)
    return MISSING if set(found) <= {MISSING} else " / ".join(found)
