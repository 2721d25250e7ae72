"""Figures 2 and 3 of the LEMoE paper, drawn from rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...evaluation.plotting import Plot, new_figure, panels_of, percent_axis, plain, save, set_title, style
from ...evaluation.scoring import REPORTED, SCORES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

_ENTRIES_WITH_NUMBERS: Final = 12
"""A matrix of more experts has no room for numbers."""


def draw_forgetting(rows: Sequence[Row], file: Path, title: str) -> Plot:
    """Above: reliability of each batch, immediately and finally. Below: a routing matrix C for each routing.

    rows: `router`, `when` ("immediate" or "final"), `batches` (reliability in % by score), `batch_sizes`,
    `consistency` (shares), `seed`; matrices are those of the lowest seed. Raises `PlotsUnavailableError` without
    matplotlib.
    """
    routings = list(dict.fromkeys(row["router"] for row in rows))
    figures = REPORTED if all("broken" in row["batches"] for row in rows) else SCORES
    columns = max(len(figures), len(routings))
    figure = new_figure(10.5)
    panels = panels_of(figure, 2, columns)
    for panel, (score, name) in zip(panels, figures, strict=False):
        for place, routing in enumerate(routings):
            for when, dash in (("immediate", "-"), ("final", "--")):
                own = [row for row in rows if row["router"] == routing and row["when"] == when]
                color, marker = style(place)
                at, means = _by_batch(own, score)
                label = plain(f"{routing}, {when}")
                face = color if when == "immediate" else "white"
                panel.plot(at, means, dash, color=color, marker=marker, markerfacecolor=face, markersize=4, label=label)
        percent_axis(panel)
        panel.set_title(name, fontsize=11)
        panel.set_xlabel("Edits made when the batch was complete")
        panel.set_ylabel("Reliability of the batch, %")
    colors: Any = None
    for panel, routing in zip(panels[columns:], routings, strict=False):
        own = [row for row in rows if row["router"] == routing and row["when"] == "final"]
        colors = _draw_matrix(panel, min(own, key=lambda row: row["seed"]), routing)
    for panel in (*panels[len(figures) : columns], *panels[columns + len(routings) :]):
        panel.remove()
    figure.colorbar(colors, ax=panels[columns : columns + len(routings)], label="Share of the edits", shrink=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    set_title(figure, title)
    return save(figure, file, title)


def draw_orders(rows: Sequence[Row], file: Path, title: str) -> Plot:
    """Left: reliability in random orders, and in the planned one. Right: against similarity within and between batches.

    rows: `router`, `shuffled` (share of the plan), `metrics`, `within_similarity`, `between_similarity`. A row of
    panels for each figure. Raises `PlotsUnavailableError` without matplotlib.
    """
    routings = list(dict.fromkeys(row["router"] for row in rows))
    figures = REPORTED if any(_reliability(row, "broken") is not None for row in rows) else SCORES
    figure = new_figure(1.0 + 4.0 * len(figures))
    panels = panels_of(figure, len(figures), 2)
    for number, (score, name) in enumerate(figures):
        left, right = panels[2 * number], panels[2 * number + 1]
        for place, routing in enumerate(routings):
            color, marker = style(place)
            own = [row for row in rows if row["router"] == routing]
            _draw_orders_of(left, own, score, place, color)
            for where, face in (("within", color), ("between", "white")):
                points = [(row[f"{where}_similarity"], _reliability(row, score)) for row in own]
                known = [
                    (similarity, value) for similarity, value in points if similarity is not None and value is not None
                ]
                right.plot(
                    [similarity for similarity, _ in known],
                    [value for _, value in known],
                    marker,
                    color=color,
                    markerfacecolor=face,
                    label=plain(f"{routing}, {where} batches"),
                )
        left.set_xticks(range(len(routings)), [plain(routing) for routing in routings])
        left.set_xlim(-0.6, len(routings) - 0.4)
        for panel in (left, right):
            panel.set_ylabel("Reliability, %")
            panel.set_title(name, fontsize=11)
            panel.grid(axis="y", color="#DDDDDD", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
        right.set_xlabel("Mean cosine of two edits' anchors")
    handles, labels = panels[1].get_legend_handles_labels()
    extra, names = panels[0].get_legend_handles_labels()
    shown = dict(zip([*labels, *names], [*handles, *extra], strict=True))
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3, frameon=False)
    set_title(figure, title)
    return save(figure, file, title)


def _draw_orders_of(panel: Axes, rows: Sequence[Row], score: str, place: int, color: str) -> None:
    """The random orders as points with their range, the planned one as a diamond."""
    random = [value for row in rows if row["shuffled"] == 1.0 and (value := _reliability(row, score)) is not None]
    planned = [value for row in rows if row["shuffled"] == 0.0 and (value := _reliability(row, score)) is not None]
    if random:
        panel.vlines(place, min(random), max(random), color=color, linewidth=1.2)
        steps = [place + 0.12 * (index / max(1, len(random) - 1) - 0.5) for index in range(len(random))]
        panel.plot(steps, random, "o", color=color, alpha=0.7, label="_" if place else "random order")
    panel.plot(
        [place] * len(planned), planned, "D", color="black", markersize=8, label="_" if place else "planned order"
    )


def _by_batch(rows: Sequence[Row], score: str) -> tuple[list[int], list[float]]:
    """(edits made, mean reliability over the runs) of each batch that all runs have."""
    if not rows:
        return [], []
    count = min(len(row["batch_sizes"]) for row in rows)
    at = list(accumulate(rows[0]["batch_sizes"][:count]))
    values = [[row["batches"][score][batch] for row in rows] for batch in range(count)]
    return at, [sum(batch) / len(batch) if None not in batch else float("nan") for batch in values]


def _draw_matrix(panel: Axes, row: Row, routing: str) -> Any:
    matrix = [[float("nan") if value is None else value for value in line] for line in row["consistency"]]
    colors = panel.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
    if len(matrix) <= _ENTRIES_WITH_NUMBERS:
        for i, line in enumerate(matrix):
            for j, value in enumerate(line):
                color = "white" if value < 0.55 else "black"
                panel.text(j, i, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=color)
    from matplotlib.ticker import MaxNLocator

    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True))
    mass = row["diagonal_mass"]
    on_diagonal = "" if mass is None else f": {100 * mass:.1f} % on the diagonal"
    panel.set_title(f"{plain(routing)}{on_diagonal}", fontsize=11)
    panel.set_xlabel("Expert that is reached")
    panel.set_ylabel("Expert that processed the edit")
    return colors


def _reliability(row: Row, score: str) -> float | None:
    return row["metrics"]["reliability"].get(score)
