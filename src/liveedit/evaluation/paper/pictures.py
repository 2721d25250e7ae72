"""The papers' figures as pictures; see `plots` for how pictures are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lines import Line, sections
from ..plots import (
    Plot,
    _edit_axis,
    _new_figure,
    _panels,
    _percent_axis,
    _plain,
    _set_title,
    _style,
)
from .averages import SCORES, average_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_averages(lines: Sequence[Line], file: Path, title: str) -> Plot:
    """The average of the five metrics against edits: a row of panels per backbone and data, one per way of scoring.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    apart = sections(lines)
    figure = _new_figure(1.6 + 3.2 * len(apart))
    panels = _panels(figure, len(apart), len(SCORES))
    editors = list(dict.fromkeys(line.editor for line in lines))
    for row, section in enumerate(apart):
        for column, (score, name) in enumerate(SCORES):
            panel = panels[row * len(SCORES) + column]
            for place, editor in enumerate(editors):
                _draw_editor(panel, [line for line in section if line.editor == editor], score, place)
            _edit_axis(panel, sorted({line.edits for line in section}))
            _percent_axis(panel)
            panel.set_title(f"{_plain(', '.join(section[0].section))}: {name.lower()}", fontsize=11)
            panel.set_xlabel("Edits")
        panels[row * len(SCORES)].set_ylabel("Average, %")
    _set_title(figure, title)
    figure.legend(handles=_handles(editors), loc="outside lower center", ncols=min(len(editors), 6), frameon=False)
    return save(figure, file, title)


def save(figure: Any, file: Path, caption: str) -> Plot:
    """Write a figure as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=100)
    return Plot(file, caption)


def _draw_editor(panel: Axes, lines: Sequence[Line], score: str, place: int) -> None:
    color, marker = _style(place)
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

    styles = [(*_style(place), _dash(place)) for place in range(len(editors))]
    return [
        Line2D([], [], color=color, marker=marker, linestyle=dash, label=_plain(editor))
        for editor, (color, marker, dash) in zip(editors, styles, strict=True)
    ]


def _dash(place: int) -> Any:
    return ("-", "--", ":")[place // 7 % 3]  # Seven colours; those that come again have another dash.
