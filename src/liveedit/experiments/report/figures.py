"""The figures of the papers: averages against edits, bars, settings as lines and as circles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.lines import Line, metric_label, reported, sections
from ...evaluation.plotting import (
    Plot,
    draw_bar,
    edit_axis,
    new_figure,
    panels_of,
    percent_axis,
    plain,
    save,
    set_title,
    style,
)
from ...evaluation.scoring import SCORES
from .averages import PAPER_METRICS, average_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_averages(lines: Sequence[Line], file: Path, title: str) -> Plot:
    """The average of the five metrics against edits: a row of panels per backbone and data, one for each figure.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    apart, figures = sections(lines), reported(lines)
    figure = new_figure(1.6 + 3.2 * len(apart))
    panels = panels_of(figure, len(apart), len(figures))
    editors = list(dict.fromkeys(line.editor for line in lines))
    for row, section in enumerate(apart):
        for column, (score, name) in enumerate(figures):
            panel = panels[row * len(figures) + column]
            for place, editor in enumerate(editors):
                _draw_editor(panel, [line for line in section if line.editor == editor], score, place)
            edit_axis(panel, sorted({line.edits for line in section}))
            percent_axis(panel)
            panel.set_title(f"{plain(', '.join(section[0].section))}: {name.lower()}", fontsize=11)
            panel.set_xlabel("Edits")
        panels[row * len(figures)].set_ylabel("Average, %")
    set_title(figure, title)
    figure.legend(handles=_handles(editors), loc="outside lower center", ncols=min(len(editors), 6), frameon=False)
    return save(figure, file, title)


def _draw_editor(panel: Axes, lines: Sequence[Line], score: str, place: int) -> None:
    color, marker = style(place)
    found = [
        (line.edits, average_spread(line, score))
        for line in sorted(lines, key=lambda line: line.edits)
        if line.complete
    ]
    points = [(edits, spread) for edits, spread in found if spread is not None]
    if not points:
        return
    at, means = [edits for edits, _ in points], [spread.mean for _, spread in points]
    panel.plot(at, means, color=color, marker=marker, markersize=5, linewidth=1.6, linestyle=_dash(place))
    stds = [spread.std or 0.0 for _, spread in points]
    low = [mean - std for mean, std in zip(means, stds, strict=True)]
    high = [mean + std for mean, std in zip(means, stds, strict=True)]
    panel.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _handles(editors: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    styles = [(*style(place), _dash(place)) for place in range(len(editors))]
    return [
        Line2D([], [], color=color, marker=marker, linestyle=dash, label=plain(editor))
        for editor, (color, marker, dash) in zip(editors, styles, strict=True)
    ]


def _dash(place: int) -> Any:
    return ("-", "--", ":")[place // 7 % 3]  # Seven colours; those that come again have another dash.


def draw_bars(lines: Sequence[Line], file: Path, title: str) -> Plot:
    """The five metrics and their average: a group of bars for each, a bar per line; a panel for each figure.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    figures = reported(lines)
    figure = new_figure(1.0 + 3.0 * len(figures))
    names = (*PAPER_METRICS, "average")
    width = 0.84 / max(1, len(lines))
    for panel, (score, scored) in zip(panels_of(figure, len(figures), 1), figures, strict=True):
        for place, line in enumerate(lines):
            for group, name in enumerate(names):
                found = average_spread(line, score) if name == "average" else line.score(name, score)
                middle = group + (place - (len(lines) - 1) / 2) * width
                draw_bar(panel, middle, width * 0.92, found, style(place)[0], "" if line.complete else "///")
        percent_axis(panel, top=112.0)
        panel.set_title(scored, fontsize=11)
        panel.set_ylabel("%")
        panel.set_xticks(range(len(names)), [metric_label(name) for name in names])
    set_title(figure, title)
    from matplotlib.patches import Patch

    handles = [Patch(color=style(place)[0], label=plain(line.label)) for place, line in enumerate(lines)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7) or 1, frameon=False)
    return save(figure, file, title)


def draw_lines(lines: Sequence[Line], values: Mapping[str, float], name: str, file: Path, title: str) -> Plot:
    """The five metrics and their average against a setting; `values` gives it by editor. A panel for each figure."""
    figures = reported(lines)
    figure = new_figure(5.5)
    ordered = sorted(lines, key=lambda line: values[line.editor])
    at = [values[line.editor] for line in ordered]
    for panel, (score, scored) in zip(panels_of(figure, 1, len(figures)), figures, strict=True):
        for place, metric in enumerate((*PAPER_METRICS, "average")):
            spreads = [
                average_spread(line, score) if metric == "average" else line.score(metric, score) for line in ordered
            ]
            points = [(where, found) for where, found in zip(at, spreads, strict=True) if found is not None]
            color, marker = style(place)
            panel.errorbar(
                [where for where, _ in points],
                [found.mean for _, found in points],
                [found.std or 0.0 for _, found in points],
                color=color,
                marker=marker,
                capsize=2,
                linewidth=2.4 if metric == "average" else 1.2,
                label=metric_label(metric),
            )
        if min(at) > 0 and max(at) >= 8 * min(at):
            panel.set_xscale("log")
        panel.set_xticks(at, [f"{value:g}" for value in at], minor=False)
        panel.minorticks_off()
        panel.set_title(scored, fontsize=11)
        panel.set_xlabel(name)
        panel.set_ylabel("%")
        panel.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    set_title(figure, title)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return save(figure, file, title)


@dataclass(frozen=True)
class Circle:
    """One combination of two settings: its place, the parameters of its editor, its averages by score."""

    column: str
    row: str
    parameters: int
    averages: Mapping[str, float]


def draw_circles(circles: Sequence[Circle], names: tuple[str, str], file: Path, title: str) -> Plot:
    """As figure 3 of the LiveEdit paper: size is the number of parameters, colour the average."""
    figure = new_figure(6.5)
    columns, rows = (list(dict.fromkeys(values)) for values in zip(*((c.column, c.row) for c in circles), strict=True))
    known = [value for circle in circles for value in circle.averages.values()]
    low, high = min(known, default=0.0), max(known, default=100.0)
    largest = max(circle.parameters for circle in circles)
    panels = panels_of(figure, 1, len(SCORES))
    points: Any = None
    for panel, (score, scored) in zip(panels, SCORES, strict=True):
        shown = [circle for circle in circles if score in circle.averages]
        points = panel.scatter(
            [columns.index(circle.column) for circle in shown],
            [rows.index(circle.row) for circle in shown],
            s=[300 + 3000 * circle.parameters / largest for circle in shown],
            c=[circle.averages[score] for circle in shown],
            cmap="cividis",
            vmin=low,
            vmax=high,
        )
        for circle in shown:
            value = circle.averages[score]
            color = "white" if value < (low + high) / 2 else "black"
            place = (columns.index(circle.column), rows.index(circle.row))
            panel.annotate(f"{value:.1f}", place, ha="center", va="center", fontsize=8.5, color=color)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(rows)), rows)
        panel.margins(0.2)
        panel.set_xlabel(names[0])
        panel.set_ylabel(names[1])
        panel.set_title(scored, fontsize=11)
    figure.colorbar(points, ax=panels, label="Average of the five metrics, %", shrink=0.8, aspect=30)
    set_title(figure, f"{title}\nlarger circles: more parameters")
    return save(figure, file, title)
