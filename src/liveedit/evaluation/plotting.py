"""What all figures share: size, colours, axes, and saving as PNG files of 1,200 pixels' width.

matplotlib is the optional extra `plot` and is imported only when a figure is drawn. Figures are made through the
`Figure` object and drawn by Agg: no display is needed, and pyplot's global state is not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import LiveEditError
from ..files import written_atomically
from .scoring import Spread
from .table import markdown_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito (2008) without its yellow, which is too faint for lines on white."""

MARKERS: Final = ("o", "s", "^", "D", "v", "p", "<", ">")
"""Not as many as `COLORS`, so that 56 combinations differ."""

_DPI: Final = 100
_WIDTH: Final = 12.0


class PlotsUnavailableError(LiveEditError, ImportError):
    """Figures are to be drawn, but matplotlib is not installed."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure that was written, and its caption."""

    path: Path
    caption: str


def new_figure(height: float) -> Figure:
    """An empty figure, 12 inches wide. Raises `PlotsUnavailableError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError(
            "matplotlib, which draws figures, cannot be imported. Install it with: pip install 'liveedit[plot]'"
        ) from error
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels_of(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """The panels of a grid, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def percent_axis(panel: Axes, top: float = 104.0) -> None:
    """Percent on the vertical axis, with a grid line at each 20."""
    panel.set_ylim(-4 if top < 110 else 0, top)
    panel.set_yticks(range(0, 101, 20))
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, file: Path, caption: str) -> Plot:
    """Write a figure as PNG."""
    with written_atomically(file) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return Plot(file, caption)


def plots_markdown(plots: Sequence[Plot]) -> list[str]:
    """Each figure with its caption below it, for a report in its folder."""
    return [f"![{markdown_text(plot.caption)}]({plot.path.name})\n\n*{markdown_text(plot.caption)}*" for plot in plots]


def edit_axis(panel: Axes, edits: Sequence[int]) -> None:
    """Numbers of edits, in ascending order, on a logarithmic horizontal axis."""
    if edits[0] == 0:  # The unedited model: the logarithm of 0 does not exist.
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set_xlim(-0.5, max(edits[-1], 1) * 2)
    else:
        panel.set_xscale("log")
        panel.set_xlim(edits[0] / 1.7, edits[-1] * 1.7)
    labels = [f"{number:,}" if number in _spaced(edits) else "" for number in edits]
    panel.set_xticks(edits, labels, minor=False)
    panel.minorticks_off()


def _spaced(edits: Sequence[int]) -> list[int]:
    """The numbers that get a label: from the largest down, those far enough apart on a logarithmic axis."""
    step = max(1.5, (edits[-1] / max(edits[0], 1)) ** (1 / 7))
    spaced: list[int] = []
    for number in reversed(edits):
        if not spaced or number * step <= spaced[-1]:
            spaced.append(number)
    return spaced


def draw_bar(panel: Axes, middle: float, width: float, found: Spread | None, color: str, hatch: str) -> None:
    """A bar with its spread and its number; a dash if there is no value."""
    if found is None:
        panel.text(middle, 1.0, "–", ha="center", va="bottom", fontsize=9, color=color)
        return
    panel.bar(middle, found.mean, width, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
    top = found.mean
    if found.std is not None:
        panel.errorbar(middle, found.mean, found.std, color="#555555", capsize=2, linewidth=1)
        top = min(101.0, found.mean + found.std)
    if width > 0.09:  # Narrower bars have no room for a number.
        panel.text(middle, top + 1.0, f"{found.mean:.0f}", ha="center", va="bottom", fontsize=8)


def set_title(figure: Figure, title: str) -> None:
    """The title above all panels."""
    figure.suptitle(plain(title), fontsize=13)


def style(place: int) -> tuple[str, str]:
    """Colour and marker of the editor at this place in the legend."""
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def plain(text: str) -> str:
    """The text escaped for matplotlib: no formula between dollar signs, no leading underscore, which hides a label."""
    return re.sub(r"^_", " _", text.replace("$", r"\$"))
