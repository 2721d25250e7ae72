"""The learning curves of a training as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidInputError
from .plotting import COLORS, MARKERS, new_figure, panels_of, percent_axis, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NO_FIGURES: Final = ("stage", "step", "kind")
_LEFT_OUT: Final = ("gradient_norm",)

Entry = Mapping[str, Any]
"""A line of the curves: `stage`, `step` of the stage, `kind` ("train" or "validation"), figures by name."""


def draw_curves(curves: Sequence[Entry], file: Path) -> None:
    """Draw losses, training figures and validation figures against all steps of all stages into a PNG file.

    Raises `InvalidInputError` if there are no curves, `PlotsUnavailableError` without matplotlib.
    """
    if not curves:
        raise InvalidInputError("There are no learning curves to draw. Train for at least ten steps.")
    starts = _stage_starts(curves)
    train = [entry for entry in curves if entry["kind"] == "train"]
    losses = [entry for entry in train if _names([entry], losses=True)]
    validation = [entry for entry in curves if entry["kind"] == "validation"]
    parts = (
        ("Training losses, nats", losses, _names(losses, losses=True)),
        ("Training figures, %", train, _names(train, losses=False)),
        ("Validation, %", validation, _names(validation, losses=False)),
    )
    shown = [part for part in parts if part[2]]
    figure = new_figure(1.0 + 3.4 * len(shown))
    for panel, (title, entries, names) in zip(panels_of(figure, len(shown), 1), shown, strict=True):
        for place, name in enumerate(names):
            _draw_line(panel, entries, name, place, starts)
        for stage, start in starts.items():
            panel.axvline(start, color="#999999", linewidth=0.8)
            panel.annotate(stage, (start, 1.0), xycoords=("data", "axes fraction"), fontsize=9, va="bottom")
        if "nats" not in title:
            percent_axis(panel)
        panel.set_ylabel(title)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.axes[-1].set_xlabel("Step")
    save(figure, file, "Learning curves")


def _stage_starts(curves: Sequence[Entry]) -> dict[str, int]:
    """The step, counted over all stages, at which each stage begins."""
    starts: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for entry in curves:
        stage = str(entry["stage"])
        starts.setdefault(stage, sum(lengths.values()))
        lengths[stage] = max(lengths.get(stage, 0), int(entry["step"]))
    return starts


def _names(entries: Sequence[Entry], *, losses: bool) -> list[str]:
    found = {name: None for entry in entries for name in entry if name not in (*_NO_FIGURES, *_LEFT_OUT)}
    return [name for name in found if name.endswith("_nats") == losses]


def _draw_line(panel: Axes, entries: Sequence[Entry], name: str, place: int, starts: Mapping[str, int]) -> None:
    """One quantity; a line for each stage, because its meaning differs between stages."""
    color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
    dash = "-" if place < len(COLORS) else "--"
    label = name.removesuffix("_nats").replace("_", " ")
    for stage, start in starts.items():
        own = [entry for entry in entries if entry["stage"] == stage and name in entry]
        if own:
            steps, values = [start + entry["step"] for entry in own], [entry[name] for entry in own]
            (line,) = panel.plot(steps, values, dash, color=color, linewidth=1.2, label=label)
            if len(own) < 40:
                line.set(marker=marker, markersize=4)
            label = "_nolegend_"
