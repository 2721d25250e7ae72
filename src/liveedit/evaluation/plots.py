"""The images of a report, as PNG files of 1,200 pixels' width.

matplotlib is the optional extra `plot` and is imported only when an image is drawn. Figures are made through
the `Figure` object and drawn by Agg: no display is needed, and pyplot's global state is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import LiveEditError
from ..samples import GENERALITY, LOCALITY
from .lines import Line, answer_types, at_largest, metric_label, metric_names, sections
from .scoring import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito (2008) without its yellow, which is too faint for lines on white."""

MARKERS: Final = ("o", "s", "^", "D", "v", "p", "<", ">")
"""Of another length than `COLORS`, so that 56 editors differ."""

_DPI: Final = 100
_WIDTH: Final = 12.0
_SCORES: Final = (("teacher_forced", "Teacher-forced token accuracy"), ("exact_match", "Exact match"))


class PlotsUnavailableError(LiveEditError, ImportError):
    """Images were asked for, but matplotlib is not installed."""


@dataclass(frozen=True, slots=True)
class Plot:
    """An image that was written, and what it shows."""

    path: Path
    caption: str


def write_plots(lines: Sequence[Line], folder: Path) -> tuple[Plot, ...]:
    """Draw every image for which there are values, for each backbone and data set, into `folder`.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    _new_figure(1.0)  # says that matplotlib is missing before anything is drawn
    written: list[Plot] = []
    for section in sections(lines):
        backbone, data = section[0].section
        edits = f"{at_largest(section)[0].edits:,}"
        where = f"{backbone}, {data}"
        drawings: tuple[tuple[str, Callable[[Sequence[Line], str], Figure | None], str], ...] = (
            ("metrics-by-edits", draw_metrics, f"Metrics against the number of edits: {where}"),
            ("reliability", draw_reliability, f"Reliability by answer type after {edits} edits: {where}"),
            (
                "answer-types",
                draw_heat_maps,
                f"Generality and locality by answer type after {edits} edits: {where}",
            ),
        )
        for kind, draw, caption in drawings:
            figure = draw(section, caption)
            if figure is not None:
                taken = {plot.path.name for plot in written}
                path = folder / _free_name(f"{kind}-{backbone}-{data}", taken)
                figure.savefig(path, format="png", dpi=_DPI)
                written.append(Plot(path, caption))
    return tuple(written)


def draw_metrics(lines: Sequence[Line], title: str) -> Figure | None:
    """One panel per metric: percent against edits, one line per editor, the spread over seeds as a band."""
    names = [name for name in metric_names(lines) if any(line.score(name, "exact_match") for line in lines)]
    if not names:
        return None
    columns = min(len(names), 4 if len(names) > 6 else 3)
    height_rows = -(-len(names) // columns)
    figure = _new_figure(1.5 + 2.9 * height_rows)
    panels = _panels(figure, height_rows, columns)
    editors = sorted({line.editor for line in lines})
    edits = sorted({line.edits for line in lines})
    for name, panel in zip(names, panels, strict=False):
        for place, editor in enumerate(editors):
            own = [line for line in lines if line.editor == editor]
            # A small shift to the side keeps editors apart that stand at the same height.
            shift = 1.0 + 0.06 * (place - (len(editors) - 1) / 2)
            _draw_editor(panel, own, name, place, shift)
        _edit_axis(panel, edits)
        _percent_axis(panel)
        panel.set_title(metric_label(name), fontsize=11)
        panel.set_xlabel("Edits")
    for panel in panels[::columns]:
        panel.set_ylabel("%")
    for panel in panels[len(names) :]:
        panel.remove()
    _set_title(figure, title)
    incomplete = any(not line.complete for line in lines)
    _legend(figure, editors, incomplete=incomplete, bands=any(line.seeds > 1 for line in lines))
    return figure


def _draw_editor(panel: Axes, lines: Sequence[Line], metric: str, place: int, shift: float) -> None:
    color, marker = _style(place)
    for score, dash in (("teacher_forced", "-"), ("exact_match", "--")):
        face = color if score == "teacher_forced" else "white"
        whole = [(line.edits * shift, found) for line, found in _scored(lines, metric, score) if line.complete]
        cut = [(line.edits * shift, found) for line, found in _scored(lines, metric, score) if not line.complete]
        if whole:
            places, spreads = [edits for edits, _ in whole], [found for _, found in whole]
            means = [found.mean for found in spreads]
            panel.plot(
                places,
                means,
                dash,
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.6,
                markerfacecolor=face,
            )
            low = [max(0.0, found.mean - (found.std or 0.0)) for found in spreads]
            high = [min(100.0, found.mean + (found.std or 0.0)) for found in spreads]
            panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        places, means = [edits for edits, _ in cut], [found.mean for _, found in cut]
        panel.plot(places, means, "X", color=color, markersize=8, markerfacecolor=face)


def _scored(lines: Sequence[Line], metric: str, score: str) -> Iterator[tuple[Line, Spread]]:
    for line in lines:
        if found := line.score(metric, score):
            yield line, found


def _edit_axis(panel: Axes, edits: Sequence[int]) -> None:
    if edits[0] == 0:  # the unedited model: a logarithm has no place for it
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set_xlim(-0.5, max(edits[-1], 1) * 2)
    else:
        panel.set_xscale("log")
        panel.set_xlim(edits[0] / 1.7, edits[-1] * 1.7)
    labels = [f"{number:,}" if number in _spaced(edits) else "" for number in edits]
    panel.set_xticks(edits, labels, minor=False)
    panel.minorticks_off()


def _spaced(edits: Sequence[int]) -> list[int]:
    """The numbers, from the largest down, that are far enough apart on a logarithmic axis for a label."""
    step = max(1.5, (edits[-1] / max(edits[0], 1)) ** (1 / 7))
    spaced: list[int] = []
    for number in reversed(edits):
        if not spaced or number * step <= spaced[-1]:
            spaced.append(number)
    return spaced


def draw_reliability(lines: Sequence[Line], title: str) -> Figure | None:
    """Two panels, teacher-forced and exact match: a group of bars per answer type, a bar per editor."""
    largest = at_largest(lines)
    kinds = [
        kind for kind in answer_types(largest) if any(line.count("reliability", answer_type=kind) for line in largest)
    ]
    if not kinds:
        return None
    figure = _new_figure(7.0)
    panels = _panels(figure, 2, 1)
    editors = sorted({line.editor for line in lines})
    width = 0.84 / len(largest)
    for panel, (score, name) in zip(panels, _SCORES, strict=True):
        for place, line in enumerate(largest):
            color, _ = _style(editors.index(line.editor))
            for group, kind in enumerate(kinds):
                found = line.score("reliability", score, kind)
                middle = group + (place - (len(largest) - 1) / 2) * width
                hatch = "" if line.complete else "///"
                _draw_bar(panel, middle, width * 0.92, found, color, hatch)
        _percent_axis(panel, top=112.0)
        panel.set_title(name, fontsize=11)
        panel.set_ylabel("Reliability, %")
        panel.set_xlim(-0.5, len(kinds) - 0.5)
        labels = [f"{_plain(kind)}\n({_sample_count(largest, kind)})" for kind in kinds]
        panel.set_xticks(range(len(kinds)), labels, fontsize=10 if len(kinds) <= 10 else 8)
    _set_title(figure, title)
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=_style(editors.index(line.editor))[0],
            edgecolor="white",
            hatch="" if line.complete else "///",
            label=_plain(line.label),
        )
        for line in largest
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    return figure


def _draw_bar(panel: Axes, middle: float, width: float, found: Spread | None, color: str, hatch: str) -> None:
    if found is None:
        panel.text(middle, 1.0, "–", ha="center", va="bottom", fontsize=9, color=color)
        return
    panel.bar(middle, found.mean, width, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
    top = found.mean
    if found.std is not None:
        panel.errorbar(middle, found.mean, found.std, color="#555555", capsize=2, linewidth=1)
        top = min(101.0, found.mean + found.std)
    if width > 0.09:  # narrower bars have no room for a number
        panel.text(middle, top + 1.0, f"{found.mean:.0f}", ha="center", va="bottom", fontsize=8)


def _sample_count(lines: Sequence[Line], kind: str) -> str:
    """Samples of one seed, as a range where editors or seeds differ."""
    counts = [metrics.get("reliability", {}).get("count") or 0 for line in lines for metrics in line.metrics(kind)]
    low, high = min(counts), max(counts)
    return f"n = {low:,}" if low == high else f"n = {low:,}–{high:,}"


def draw_heat_maps(lines: Sequence[Line], title: str) -> Figure | None:
    """One map per editor: answer types down, metrics across; exact match as colour, both as numbers."""
    largest = at_largest(lines)
    occurring = metric_names(largest, by_answer_type=True)
    names = [name for name in (*GENERALITY, *LOCALITY) if name in occurring]
    kinds = [
        kind
        for kind in answer_types(largest)
        if any(line.score(name, "exact_match", kind) for line in largest for name in names)
    ]
    if not kinds:
        return None
    columns = min(len(largest), 2 if len(names) > 3 else 3)
    height_rows = -(-len(largest) // columns)
    figure = _new_figure(2.0 + height_rows * (1.3 + 0.48 * len(kinds)))
    panels = _panels(figure, height_rows, columns)
    image: Any = None
    for place, (line, panel) in enumerate(zip(largest, panels, strict=False)):
        image = _draw_map(panel, line, kinds, names, labelled=place % columns == 0)
    for panel in panels[len(largest) :]:
        panel.remove()
    figure.colorbar(image, ax=panels[: len(largest)], label="Exact match, %", shrink=0.8, aspect=30)
    _set_title(figure, f"{title}\nabove: teacher-forced, below: exact match, in %")
    return figure


def _draw_map(panel: Axes, line: Line, kinds: Sequence[str], names: Sequence[str], *, labelled: bool) -> Any:
    from matplotlib import colormaps

    exact = [[line.score(name, "exact_match", kind) for name in names] for kind in kinds]
    values = [[float("nan") if found is None else found.mean for found in row] for row in exact]
    colors = colormaps["cividis"].with_extremes(bad="#E6E6E6")
    image = panel.imshow(values, cmap=colors, vmin=0, vmax=100, aspect="auto")
    for i, kind in enumerate(kinds):
        for j, name in enumerate(names):
            forced, found = line.score(name, "teacher_forced", kind), exact[i][j]
            text = "–" if forced is None and found is None else f"{_number(forced)}\n{_number(found)}"
            dark = found is not None and found.mean < 55
            panel.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    panel.set_xticks(range(len(names)), [_broken(metric_label(name)) for name in names], fontsize=7.5)
    panel.set_yticks(range(len(kinds)), [_plain(kind) for kind in kinds] if labelled else [""] * len(kinds))
    panel.tick_params(length=0)
    panel.set_title(_plain(line.label), fontsize=11)
    return image


def _number(found: Spread | None) -> str:
    return "–" if found is None else f"{found.mean:.1f}"


def _new_figure(height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError(
            "matplotlib, which draws images, cannot be imported. Install it with: pip install 'liveedit[plot]'"
        ) from error
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def _percent_axis(panel: Axes, top: float = 104.0) -> None:
    panel.set_ylim(-4 if top < 110 else 0, top)
    panel.set_yticks(range(0, 101, 20))
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, editors: Sequence[str], *, incomplete: bool, bands: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for place, editor in enumerate(editors):
        color, marker = _style(place)
        handles.append(Line2D([], [], color=color, marker=marker, label=_plain(editor)))
    handles.append(Line2D([], [], color="#555555", linestyle="-", label="teacher-forced"))
    handles.append(Line2D([], [], color="#555555", linestyle="--", label="exact match"))
    if bands:
        handles.append(Patch(color="#555555", alpha=0.15, label="± std over seeds"))
    if incomplete:
        handles.append(Line2D([], [], color="#555555", marker="X", linestyle="", label="not complete"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False)


def _set_title(figure: Figure, title: str) -> None:
    figure.suptitle(_plain(title), fontsize=13)


def _style(place: int) -> tuple[str, str]:
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def _plain(text: str) -> str:
    """A name that matplotlib shows as it is: no formula between dollars, no leading mark that hides it."""
    return re.sub(r"^_", " _", text.replace("$", r"\$"))


def _broken(label: str) -> str:
    return _plain(label).replace(" ", "\n")


def _free_name(name: str, taken: set[str]) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    candidates = (f"{slug}{end}.png" for end in ("", *(f"-{i}" for i in range(2, len(taken) + 3))))
    return next(candidate for candidate in candidates if candidate not in taken)
