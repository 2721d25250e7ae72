"""Tables 1, 5 and 6 of the LiveEdit paper: every editor over a lifetime of edits, on one bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ..editors import editor_class, editor_names
from ..errors import InvalidInputError
from ..evaluation.lines import Line, lines_of
from ..evaluation.published import published_table
from ..evaluation.report_tables import cost_table
from .experiment import Experiment
from .jobs import Row
from .papers import OWN, PaperTable
from .report.averages import in_order
from .report.figures import draw_averages
from .report.report import Drawing, Findings
from .report.tables import harder_table, paper_table, verdict_table
from .report.verdict import Verdict, headline, judge
from .runs import BenchOptions, EditorChoice, Run, in_stages


def comparison(
    table: PaperTable,
    out: Path,
    editors: Sequence[str] = (),
    backbones: Sequence[str] = (),
    data: Sequence[str] = ("world",),
    edits: Sequence[int] = (),
    seeds: Sequence[int] = (),
    sources: Mapping[str, str] | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """The runs of a comparison and its report; what is not given is as in the paper's table.

    editors: names, or LABEL=NAME; empty for all installed editors. sources: folders of trained parts by LABEL, or by
    BACKBONE/LABEL if each backbone has its own. Raises `InvalidInputError` for a source that no run uses and for a
    label given twice, `NotFoundError` for an editor that is not installed.
    """
    named = [_labelled(item) for item in (editors or default_editors())]
    for _, name in named:
        editor_class(name)
    labels = [label for label, _ in named]
    if len(set(labels)) < len(labels):
        raise InvalidInputError(f"An editor was given twice ({', '.join(labels)}). Give LABEL=NAME to distinguish two.")
    chosen = tuple(backbones or table.backbones)
    numbers, orders = sorted(set(edits or table.edits)), tuple(dict.fromkeys(seeds or table.seeds))
    folders = dict(sources or {})
    general = options or BenchOptions(cases=max(numbers))
    runs = [
        Run(out, backbone, source, _choice(label, name, backbone, folders), (number,), (seed,), general)
        for seed in orders
        for number in numbers
        for source in data
        for backbone in chosen
        for label, name in named
    ]
    _refuse_stray(folders, chosen, labels)
    return Experiment(table.name, tuple(in_stages(runs)), partial(summarize, table, labels), {"labels": labels})


def default_editors() -> tuple[str, ...]:
    """Every installed editor, in the order of the tables (`Editor.table_order`, then by name)."""
    return tuple(sorted(editor_names(), key=lambda name: (editor_class(name).table_order, name)))


def variants(own: str) -> tuple[str, ...]:
    """The installed editors derived from this one, in the order of the tables."""
    return tuple(
        name for name in default_editors() if name != own and issubclass(editor_class(name), editor_class(own))
    )


def summarize(
    table: PaperTable, labels: Sequence[str], rows: Sequence[Row], failed: Sequence[tuple[str, str]]
) -> Findings:
    """The report of a comparison: verdicts, tables with the three figures, harder probes, published values."""
    published = published_table({row["edits"] for row in rows}, table.published_backbones, table.published_data)
    if not rows:
        return Findings(table.title, (), (), ("Nothing could be measured.",), (), (published,), failed)
    lines = in_order(lines_of(rows), labels)
    family = (OWN, *variants(OWN))
    judged = [judge(lines, name, {*family} - {name}, labels) for name in family if name in labels]
    summary = [sentence for verdicts in judged for sentence in _sentences(verdicts)]
    if failed and summary:
        summary.insert(1, f"{len(failed)} runs failed and are missing here: see below.")
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


def _sentences(verdicts: Sequence[Verdict]) -> list[str]:
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
