"""The papers' tables: the five metrics with their average, and the harder probes beside them."""

from __future__ import annotations

from collections.abc import Sequence

from ...evaluation.lines import Line, metric_label, metric_names
from ...evaluation.report_tables import (
    CELL_NOTE,
    MISSING,
    SettingColumns,
    joined_figures,
    number_cell,
    score_cell,
    status_notes,
)
from ...evaluation.scoring import REPORTED, SCORES
from ...evaluation.table import Table
from .averages import HARDER, PAPER_METRICS, average_spread
from .verdict import Verdict


def paper_table(lines: Sequence[Line], title: str) -> Table:
    """One line per editor and number of edits, in the given order, with the columns of the paper."""
    setting = SettingColumns.of(lines)
    rows = tuple(
        (*setting.cells(line), *(_mean_cell(line, name) for name in PAPER_METRICS), average_cell(line), str(line.seeds))
        for line in lines
    )
    notes = [
        CELL_NOTE,
        "Average: mean of the five metrics, with the sample standard deviation over seeds if there are several.",
        *setting.notes,
        *status_notes(lines),
    ]
    header = (*setting.header, *map(metric_label, PAPER_METRICS), "Average", "Seeds")
    return Table(title, header, rows, tuple(notes), setting.text_columns, key_columns=len(setting.header))


def harder_table(lines: Sequence[Line], title: str) -> Table | None:
    """The probes that the paper does not have; None if none was asked."""
    occurring = metric_names(lines)
    names = [name for name in (*HARDER, "cross_modal", "portability") if name in occurring]
    if not names:
        return None
    setting = SettingColumns.of(lines)
    rows = tuple((*setting.cells(line), *(score_cell(line, name) for name in names)) for line in lines)
    notes = (
        CELL_NOTE,
        "± is the sample standard deviation over seeds." if any(line.seeds > 1 for line in lines) else "",
    )
    header = (*setting.header, *map(metric_label, names))
    found = (*filter(None, notes), *setting.notes)
    return Table(title, header, rows, found, setting.text_columns, key_columns=len(setting.header))


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts' figures: own average, best other, and by how much."""
    rows = tuple(
        (
            verdict.backbone,
            verdict.data,
            dict(SCORES)[verdict.score],
            verdict.standing,
            verdict.rival or MISSING,
            f"{verdict.edits:,}",
            *(MISSING if value is None else f"{value:.1f}" for value in (verdict.own_average, verdict.rival_average)),
            _lead_cell(verdict),
        )
        for verdict in verdicts
    )
    own = verdicts[0].own
    header = (
        "Backbone",
        "Data",
        "Scored by",
        f"{own} is",
        "Nearest other",
        "Edits",
        f"{own}, average",
        "Other, average",
        "Lead",
    )
    notes = (
        "Lead: mean over seeds of the difference on the same edits, with its 95 % confidence interval (Student's t).",
    )
    return Table(f"Is {own} the best?", header, rows, notes, text_columns=5)


def average_cell(line: Line) -> str:
    """The average of each figure of `REPORTED`."""
    return joined_figures(number_cell(average_spread(line, score), line.seeds) for score, _ in REPORTED)


def _mean_cell(line: Line, metric: str) -> str:
    """The mean alone; as in the paper, only the average has its spread."""
    found = [line.score(metric, score) for score, _ in REPORTED]
    return joined_figures(MISSING if spread is None else f"{spread.mean:.1f}" for spread in found)


def _lead_cell(verdict: Verdict) -> str:
    lead = verdict.lead
    if lead is None:
        return MISSING
    interval = "" if lead.low is None else f" [{lead.low:.1f}, {lead.high:.1f}]"
    return f"{lead.mean:+.1f}{interval}"
