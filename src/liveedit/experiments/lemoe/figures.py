"""Figures 2 and 3 of the LEMoE paper: forgetting and routing, and the effect of the order of edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ...editors.lemoe import LemoeConfig
from ...errors import ConfigError, issues_of
from ...evaluation.lines import lines_of
from ...evaluation.report_tables import MISSING, figure_text, joined_figures, main_table
from ...evaluation.scoring import REPORTED, SCORES, Spread
from ...evaluation.table import Table
from ..experiment import Experiment
from ..jobs import Row
from ..report.averages import in_order
from ..report.report import Findings
from ..runs import BenchOptions
from .plots import draw_forgetting, draw_orders
from .runs import FINAL, IMMEDIATE, LemoeRun

BACKBONES: Final = ("tiny-llama-lm", "tiny-mistral-lm")
ROUTINGS: Final = ("conventional", "kv_anchor")
SHARES: Final = (0.0, 0.25, 0.5, 0.75)
"""Shares of the planned order that are shuffled, between none and all; the paper's orders are not known."""

FIGURE_2: Final = "lemoe-figure2"
FIGURE_3: Final = "lemoe-figure3"

_TITLE_2: Final = "Immediate and final evaluation, and routing consistency (LEMoE paper, figure 2)"
_TITLE_3: Final = "The order of edits (LEMoE paper, figure 3)"
_SOURCE: Final = (
    "LEMoE (Wang and Li 2024) shows this on LLaMA2-7B with ZsRE, as figures without numbers: there are no published "
    "values to compare with. Its full text was not available: LEMoE is partly reconstructed here, as its settings say."
)

Settings = Mapping[str, Any]


def figure_2(
    out: Path,
    backbones: Sequence[str] = BACKBONES,
    data: str = "facts",
    edits: int = 200,
    seeds: Sequence[int] = (0,),
    settings: Settings | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """Runs of both kinds of routing over the same edits in the same random order, and the report.

    Raises `ConfigError` for settings that LEMoE does not have or take.
    """
    general = options or BenchOptions(cases=edits)
    jobs = [
        LemoeRun(out, name, data, routing, edits, seed, general, _settings(settings, routing), stage=stage)
        for stage, seed in enumerate(dict.fromkeys(seeds))
        for name in backbones
        for routing in ROUTINGS
    ]
    return Experiment(FIGURE_2, tuple(jobs), summarize_2)


def figure_3(
    out: Path,
    backbones: Sequence[str] = BACKBONES,
    data: str = "facts",
    edits: int = 200,
    orders: int = 6,
    seed: int = 0,
    settings: Settings | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """Runs of both kinds of routing over the same edits in many orders: planned, shuffled in part, and random."""
    general = options or BenchOptions(cases=edits)

    def run(name: str, routing: str, share: float, order: int) -> LemoeRun:
        parts = (out, name, data, _label(routing, share), edits, seed, general, _settings(settings, routing))
        return LemoeRun(*parts, shuffled=share, order=order, stage=order)

    jobs = [
        run(name, routing, share, order)
        for name in backbones
        for routing in ROUTINGS
        for share, count in ((1.0, orders), *((share, 1) for share in SHARES))
        for order in range(count)
    ]
    return Experiment(FIGURE_3, tuple(jobs), summarize_3)


def _settings(given: Settings | None, routing: str) -> tuple[tuple[str, Any], ...]:
    return checked_settings({**(given or {}), "routing": routing})


def checked_settings(given: Settings | None) -> tuple[tuple[str, Any], ...]:
    """Settings of LEMoE, sorted. Raises `ConfigError` for those that it does not have or take."""
    values = dict(given or {})
    try:
        LemoeConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"The settings of LEMoE cannot be used: {issues_of(error)}.") from error
    return tuple(sorted(values.items()))


def _label(routing: str, share: float) -> str:
    return f"{routing}, {_order_name(share)}"


def _order_name(share: float) -> str:
    return {0.0: "planned order", 1.0: "random order"}.get(share, f"{share:.0%} of the plan shuffled")


# -- figure 2 --------------------------------------------------------------------------------------------


def summarize_2(rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """What conventional routing forgets, and which expert an edit finds again."""
    if not rows:
        return Findings(_TITLE_2, (), (), ("Nothing could be measured.",), failed=failed)
    lines = in_order(lines_of(rows), [f"{routing}, {when}" for routing in ROUTINGS for when in _WHEN])
    return Findings(
        title=_TITLE_2,
        rows=rows,
        tables=[main_table(lines, _TITLE_2), _consistency_table(rows), _batch_table(rows)],
        summary=[*_sentences(rows, _forgetting), _SOURCE],
        drawings=(partial(_draw, rows, FIGURE_2, draw_forgetting, _TITLE_2),),
        failed=failed,
    )


def _forgetting(backbone: str, data: str, rows: Sequence[Row]) -> list[str]:
    """One sentence per routing: what is left at the end, and how often a question reaches its expert."""
    sentences = []
    for routing in _routings(rows):
        own = [row for row in rows if row["router"] == routing]
        parts = []
        for score, name in SCORES:
            first, last = (_mean([_reliability(row, score) for row in own if row["when"] == when]) for when in _WHEN)
            parts.append(f"{name.lower()} {first:.1f} immediately and {last:.1f} finally")
        mass = 100 * _mean([row["diagonal_mass"] for row in own if row["when"] == FINAL])
        sentences.append(
            f"{backbone}, {data}, {own[0]['edits']:,} edits, {routing}: reliability {'; '.join(parts)}. {mass:.1f} % "
            "of the edits are routed to the expert that processed them (mean of the diagonal)."
        )
    return sentences


def _consistency_table(rows: Sequence[Row]) -> Table:
    final = [row for row in rows if row["when"] == FINAL]
    cells = tuple(
        (
            *(row["backbone"], row["data"], row["router"], str(row["seed"]), f"{row['edits']:,}"),
            str(len(row["consistency"])),
            _percent(row["diagonal_mass"]),
        )
        for row in final
    )
    header = ("Backbone", "Data", "Routing", "Seed", "Edits", "Experts", "Diagonal mass, %")
    note = "Diagonal mass: mean over experts of the share of their edits that are routed to them at the end (C_ii)."
    return Table("Routing consistency", header, cells, (note,), text_columns=4)


def _batch_table(rows: Sequence[Row]) -> Table:
    """Reliability of each batch, the first seed's."""
    cells = []
    for row in (row for row in rows if row["when"] == IMMEDIATE):
        (last,) = [other for other in rows if other["when"] == FINAL and _same_run(row, other)]
        edits = 0
        for number, size in enumerate(row["batch_sizes"]):
            edits += size
            found = [
                joined_figures(_batch_figure(which, score, number) for score, _ in REPORTED) for which in (row, last)
            ]
            cells.append((row["backbone"], row["router"], str(row["seed"]), f"{edits:,}", *found))
    header = ("Backbone", "Routing", "Seed", "Edits made", "Immediately", "Finally")
    note = (
        "Reliability of the batch that ends at this number of edits: teacher-forced token accuracy / exact match / "
        "broken answers, in %."
    )
    return Table("Reliability batch by batch", header, tuple(cells), (note,), text_columns=3)


# -- figure 3 --------------------------------------------------------------------------------------------


def summarize_3(rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """The spread over orders of edits, and the similarity of edits within batches."""
    if not rows:
        return Findings(_TITLE_3, (), (), ("Nothing could be measured.",), failed=failed)
    final = [row for row in rows if row["when"] == FINAL]
    shares = (*SHARES, 1.0)
    lines = in_order(
        lines_of(final), [f"{_label(routing, share)}, {FINAL}" for routing in ROUTINGS for share in shares]
    )
    return Findings(
        title=_TITLE_3,
        rows=rows,
        tables=[main_table(lines, f"{_TITLE_3}: asked after all edits"), _similarity_table(final)],
        summary=[*_sentences(final, _orders), _SOURCE],
        drawings=(partial(_draw, final, FIGURE_3, draw_orders, _TITLE_3),),
        failed=failed,
    )


def _orders(backbone: str, data: str, rows: Sequence[Row]) -> list[str]:
    """Two sentences per routing: the spread of random orders beside the plan, and the correlation with similarity."""
    sentences = []
    for routing in _routings(rows):
        own = [row for row in rows if row["router"] == routing]
        for score, name in SCORES:
            random = [
                value for row in own if row["shuffled"] == 1.0 and (value := _reliability(row, score)) is not None
            ]
            planned = [
                value for row in own if row["shuffled"] == 0.0 and (value := _reliability(row, score)) is not None
            ]
            where = f"{backbone}, {data}, {own[0]['edits']:,} edits, {routing}, {name.lower()}"
            if random:
                spread = Spread.of(random)
                std = "" if spread.std is None else f", standard deviation {spread.std:.1f}"
                found = (
                    f"random orders {spread.mean:.1f} ({min(random):.1f} to {max(random):.1f} over {len(random)}{std})"
                )
                beside = f"; planned order {_mean(planned):.1f}" if planned else ""
                sentences.append(f"{where}: reliability in {found}{beside}.")
            pairs = [
                (row["within_similarity"], value)
                for row in own
                if (value := _reliability(row, score)) is not None and row["within_similarity"] is not None
            ]
            correlation = _correlation(pairs)
            if correlation is not None:
                sentences.append(
                    f"{where}: over {len(pairs)} orders, reliability and similarity within batches correlate by "
                    f"{correlation:+.2f} (Pearson)."
                )
    return sentences


def _similarity_table(rows: Sequence[Row]) -> Table:
    cells = tuple(
        (
            *(row["backbone"], row["router"], _order_name(row["shuffled"]), str(row["order"])),
            *(figure_text(row[f"{where}_similarity"], 2) for where in ("within", "between")),
            joined_figures(figure_text(_reliability(row, score)) for score, _ in REPORTED),
        )
        for row in sorted(rows, key=lambda row: (row["backbone"], row["router"], row["shuffled"], row["order"]))
    )
    header = ("Backbone", "Routing", "Order", "Number", "Similarity within", "Similarity between", "Reliability")
    note = (
        "Similarity: mean cosine of the anchors of two edits of one batch, and of different batches. Reliability after "
        "all edits: teacher-forced token accuracy / exact match / broken answers, in %."
    )
    return Table("Similarity of batches and reliability", header, cells, (note,), text_columns=4)


# -- both ------------------------------------------------------------------------------------------------

_WHEN: Final = (IMMEDIATE, FINAL)


def _draw(
    rows: Sequence[Row], name: str, draw: Callable[[Sequence[Row], Path, str], Any], title: str, folder: Path
) -> list[Any]:
    """A figure for each backbone."""
    return [
        draw(own, folder / f"{name}-{backbone}.png", f"{title}: {backbone}, {data}")
        for (backbone, data), own in _by_setting(rows).items()
    ]


def _sentences(rows: Sequence[Row], describe: Callable[[str, str, Sequence[Row]], list[str]]) -> list[str]:
    return [
        sentence for (backbone, data), own in _by_setting(rows).items() for sentence in describe(backbone, data, own)
    ]


def _by_setting(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["backbone"], row["data"]), []).append(row)
    return found


def _routings(rows: Sequence[Row]) -> list[str]:
    return [routing for routing in ROUTINGS if any(row["router"] == routing for row in rows)]


def _same_run(row: Row, other: Row) -> bool:
    return all(row[key] == other[key] for key in ("backbone", "data", "label", "seed"))


def _reliability(row: Row, score: str) -> float | None:
    return row["metrics"]["reliability"].get(score)


def _batch_figure(row: Row, score: str, number: int) -> str:
    return figure_text(row["batches"][score][number]) if score in row["batches"] else MISSING


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's; None for fewer than three pairs, or if one side does not vary."""
    if len(pairs) < 3:
        return None
    first, second = ([pair[side] - _mean([pair[side] for pair in pairs]) for pair in pairs] for side in (0, 1))
    length = (sum(value**2 for value in first) * sum(value**2 for value in second)) ** 0.5
    return sum(a * b for a, b in zip(first, second, strict=True)) / length if length > 1e-9 else None


def _percent(share: float | None) -> str:
    return figure_text(None if share is None else 100 * share)
