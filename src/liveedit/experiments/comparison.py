"""Tables 1, 5 and 6 of the LiveEdit paper: every editor over a lifetime of edits, on one bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ..editors import editor_names
from ..errors import InvalidInputError
from ..evaluation.lines import Line, lines_of
from ..evaluation.published import published_table
from ..evaluation.report_tables import cost_table
from .cells import Cell, EditorChoice, Measuring, in_stages
from .experiment import Experiment
from .jobs import Row
from .report.averages import in_order
from .report.figures import draw_averages
from .report.report import Drawing, Findings
from .report.tables import harder_table, paper_table, verdict_table
from .report.verdict import Verdict, headline, judge

OWN: Final = "liveedit"
FAMILY: Final = ("liveedit-refine",)
"""Variants of `OWN`: judged apart from it, and never its rivals."""

EDITORS: Final = (
    *("none", "ft-l", "ft-m", "mend", "serac", "t-patcher", "lte", "recipe", "lemoe", "ike"),
    *(OWN, *FAMILY),
)
"""The order in which tables show editors: the unedited model, then as in the paper, then what it does not have."""


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's three comparisons: what it is measured on here, and what of the paper stands beside it."""

    name: str
    title: str
    backbones: tuple[str, ...]
    published_backbones: tuple[str, ...]
    published_data: tuple[str, ...]
    edits: tuple[int, ...] = (1, 10, 100, 1000)
    seeds: tuple[int, ...] = (0, 1, 2)


_LLAVA, _BLIP2, _MINIGPT4 = "LLaVA-V1.5 (7B)", "BLIP2-OPT (2.7B)", "MiniGPT-4 (7B)"
_DATA = ("E-VQA", "VLKEB", "E-IC")

TABLE_1: Final = PaperTable(
    "table1",
    "Lifelong editing: all editors on three backbones (LiveEdit paper, table 1)",
    ("tiny-llava", "tiny-blip2", "tiny-minigpt4"),
    (_LLAVA, _BLIP2),
    ("E-VQA", "VLKEB"),
)
TABLE_5: Final = PaperTable(
    "table5",
    "Lifelong editing on BLIP-2 and LLaVA, in full (LiveEdit paper, table 5)",
    ("tiny-blip2", "tiny-llava"),
    (_BLIP2, _LLAVA),
    _DATA,
)
TABLE_6: Final = PaperTable(
    "table6",
    "Lifelong editing on MiniGPT-4, in full (LiveEdit paper, table 6)",
    ("tiny-minigpt4",),
    (_MINIGPT4,),
    _DATA,
)

TABLES: Final = {table.name: table for table in (TABLE_1, TABLE_5, TABLE_6)}


def comparison(
    table: PaperTable,
    out: Path,
    editors: Sequence[str] = (),
    backbones: Sequence[str] = (),
    data: Sequence[str] = ("world",),
    edits: Sequence[int] = (),
    seeds: Sequence[int] = (),
    sources: Mapping[str, str] | None = None,
    measuring: Measuring | None = None,
) -> Experiment:
    """The cells of a comparison and its report; what is not given is as in the paper's table.

    editors: names, or LABEL=NAME; all that are installed where none are given. sources: folders of trained parts by
    LABEL, or by BACKBONE/LABEL where each backbone has its own. Raises `InvalidInputError` for a source that no cell
    uses and for a label given twice, `NotFoundError` for an editor that is not installed.
    """
    from ..editors import editor_class

    named = [_labelled(item) for item in (editors or default_editors())]
    for _, name in named:
        editor_class(name)
    labels = [label for label, _ in named]
    if len(set(labels)) < len(labels):
        raise InvalidInputError(f"An editor was given twice ({', '.join(labels)}). Give LABEL=NAME to tell two apart.")
    chosen = tuple(backbones or table.backbones)
    numbers, orders = sorted(set(edits or table.edits)), tuple(dict.fromkeys(seeds or table.seeds))
    folders = dict(sources or {})
    general = measuring or Measuring(cases=max(numbers))
    cells = [
        Cell(out, backbone, source, _choice(label, name, backbone, folders), (number,), (seed,), general)
        for seed in orders
        for number in numbers
        for source in data
        for backbone in chosen
        for label, name in named
    ]
    _refuse_stray(folders, chosen, labels)
    return Experiment(table.name, tuple(in_stages(cells)), partial(conclude, table, labels))


def default_editors() -> tuple[str, ...]:
    """Every editor that is installed, in the order of the tables."""
    installed = editor_names()
    return (*(name for name in EDITORS if name in installed), *(name for name in installed if name not in EDITORS))


def conclude(
    table: PaperTable, labels: Sequence[str], rows: Sequence[Row], failed: Sequence[tuple[str, str]]
) -> Findings:
    """The report of a comparison: verdict, tables in both ways of scoring, harder probes, the paper's own values."""
    published = published_table({row["edits"] for row in rows}, table.published_backbones, table.published_data)
    if not rows:
        return Findings(table.title, (), (), ("Nothing could be measured.",), (), (published,), failed)
    lines = in_order(lines_of(rows), labels)
    judged = [_judged(lines, name, labels) for name in (OWN, *FAMILY) if name in labels]
    summary = [sentence for verdicts in judged for sentence in _said(verdicts)]
    if failed and summary:
        summary.insert(1, f"{len(failed)} cells failed and are missing from this: see below.")
    candidates = (
        paper_table(lines, table.title),
        *(verdict_table(verdicts) for verdicts in judged),
        harder_table(lines, "Harder probes, which the paper does not have"),
        cost_table(lines),
    )
    return Findings(
        title=table.title,
        rows=rows,
        tables=[found for found in candidates if found is not None],
        summary=summary,
        drawings=(_averages_of(lines, table),),
        published=(published,),
        failed=failed,
        extra={"verdicts": [asdict(verdict) for verdicts in judged for verdict in verdicts]},
    )


def _judged(lines: Sequence[Line], own: str, labels: Sequence[str]) -> list[Verdict]:
    """How `own` stands among all editors but its relatives."""
    return judge(lines, own, {OWN, *FAMILY} - {own}, labels)


def _said(verdicts: Sequence[Verdict]) -> list[str]:
    return [headline(verdicts), *(verdict.sentence() for verdict in verdicts)]


def _averages_of(lines: Sequence[Line], table: PaperTable) -> Drawing:
    return lambda folder: [
        draw_averages(lines, folder / f"{table.name}-averages.png", "Average of the five metrics, ± std over seeds")
    ]


def _labelled(item: str) -> tuple[str, str]:
    label, _, name = item.partition("=")
    return label, name or label


def _choice(label: str, name: str, backbone: str, sources: Mapping[str, str]) -> EditorChoice:
    return EditorChoice(label, name, sources.get(f"{backbone}/{label}", sources.get(label)))


def _refuse_stray(sources: Mapping[str, str], backbones: Sequence[str], labels: Sequence[str]) -> None:
    known = {*labels, *(f"{backbone}/{label}" for backbone in backbones for label in labels)}
    if stray := sorted(sources.keys() - known):
        raise InvalidInputError(
            f"Trained parts were given for {', '.join(stray)}; measured are {', '.join(labels)} on "
            f"{', '.join(backbones)}. Give EDITOR=DIR or BACKBONE/EDITOR=DIR of these."
        )
