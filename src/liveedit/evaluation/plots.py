"""The figures of a report: metrics against edits, reliability by answer type, heat maps of metrics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..samples import GENERALITY, LOCALITY
from .lines import Line, answer_types, at_largest, metric_label, metric_names, reported, sections
from .plotting import (
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
from .scoring import REPORTED, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STROKES: Final[dict[str, Literal["-", "--", ":"]]] = {"teacher_forced": "-", "exact_match": "--", "broken": ":"}
_SHORT: Final = {"teacher_forced": "teacher-forced", "exact_match": "exact match", "broken": "broken answers"}


def write_plots(lines: Sequence[Line], folder: Path) -> tuple[Plot, ...]:
    """Draw every figure that has values into `folder`, for each backbone and data set.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    new_figure(1.0)  # Raises without matplotlib before anything is drawn.
    written: list[Plot] = []
    for section in sections(lines):
        backbone, data = section[0].section
        edits = f"{at_largest(section)[0].edits:,}"
        where = f"{backbone}, {data}"
        drawings: tuple[tuple[str, Callable[[Sequence[Line], str], Figure | None], str], ...] = (
            ("metrics-by-edits", draw_metrics, f"Metrics against the number of edits: {where}"),
            ("reliability", draw_reliability, f"Reliability by answer type after {edits} edits: {where}"),
            ("forgetting", draw_forgetting, f"Edits by their place, after {edits} edits: {where}"),
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
                written.append(save(figure, path, caption))
    return tuple(written)


def draw_metrics(lines: Sequence[Line], title: str) -> Figure | None:
    """One panel per metric: percent against edits, one line per editor, the spread over seeds as a band."""
    names = [name for name in metric_names(lines) if any(line.score(name, "exact_match") for line in lines)]
    if not names:
        return None
    columns = min(len(names), 4 if len(names) > 6 else 3)
    height_rows = -(-len(names) // columns)
    figure = new_figure(1.5 + 2.9 * height_rows)
    panels = panels_of(figure, height_rows, columns)
    editors = sorted({line.editor for line in lines})
    edits = sorted({line.edits for line in lines})
    for name, panel in zip(names, panels, strict=False):
        for place, editor in enumerate(editors):
            own = [line for line in lines if line.editor == editor]
            # A small horizontal shift keeps editors with equal values apart.
            shift = 1.0 + 0.06 * (place - (len(editors) - 1) / 2)
            _draw_editor(panel, own, name, place, shift)
        edit_axis(panel, edits)
        percent_axis(panel)
        panel.set_title(metric_label(name), fontsize=11)
        panel.set_xlabel("Edits")
    for panel in panels[::columns]:
        panel.set_ylabel("%")
    for panel in panels[len(names) :]:
        panel.remove()
    set_title(figure, title)
    incomplete = any(not line.complete for line in lines)
    bands = any(line.seeds > 1 for line in lines)
    _legend(figure, editors, [score for score, _ in reported(lines)], incomplete=incomplete, bands=bands)
    return figure


def _draw_editor(panel: Axes, lines: Sequence[Line], metric: str, place: int, shift: float) -> None:
    color, marker = style(place)
    for score, dash in _STROKES.items():
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
                markersize=3 if score == "broken" else 5,
                linewidth=1.6,
                markerfacecolor=face,
            )
            low = [max(0.0, found.mean - (found.std or 0.0)) for found in spreads]
            high = [min(100.0, found.mean + (found.std or 0.0)) for found in spreads]
            panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        places, means = [edits for edits, _ in cut], [found.mean for _, found in cut]
        panel.plot(places, means, "X", color=color, markersize=8, markerfacecolor=face)


def draw_forgetting(lines: Sequence[Line], title: str) -> Figure | None:
    """The forgetting curve: the figures of edits against their place in the sequence, after the last edit.

    One line per editor; the curves of several seeds are averaged, and their spread is a band.
    """
    curves = {line.editor: _curves(line) for line in at_largest(lines)}
    curves = {editor: found for editor, found in curves.items() if found}
    if not curves:
        return None
    figure = new_figure(4.6)
    panels = panels_of(figure, 1, len(REPORTED))
    editors = sorted({line.editor for line in lines})
    for panel, (score, name) in zip(panels, REPORTED, strict=True):
        for editor, found in curves.items():
            color, marker = style(editors.index(editor))
            spreads = [_spread_at(found, place, score) for place in range(len(found[0]))]
            known = [(found[0][place]["last"], one) for place, one in enumerate(spreads) if one is not None]
            places, means = [place for place, _ in known], [one.mean for _, one in known]
            panel.plot(places, means, color=color, marker=marker, markersize=5, linewidth=1.6)
            stds = [one.std or 0.0 for _, one in known]
            low = [max(0.0, mean - std) for mean, std in zip(means, stds, strict=True)]
            high = [min(100.0, mean + std) for mean, std in zip(means, stds, strict=True)]
            panel.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
        percent_axis(panel)
        panel.set_title(name, fontsize=11)
        panel.set_xlabel("Place in the sequence, the oldest first")
    panels[0].set_ylabel("%")
    set_title(figure, title)
    bands = any(len(found) > 1 for found in curves.values())
    _legend(figure, list(curves), [], incomplete=False, bands=bands, among=editors)
    return figure


def _curves(line: Line) -> list[list[Mapping[str, Any]]]:
    """The curves of the seeds that have one; those of a line have the same places."""
    return [row["order"]["curve"] for row in line.rows if row.get("order")]


def _spread_at(curves: Sequence[Sequence[Mapping[str, Any]]], place: int, score: str) -> Spread | None:
    values = [curve[place][score] for curve in curves if curve[place][score] is not None]
    return Spread.of(values) if values else None


def _scored(lines: Sequence[Line], metric: str, score: str) -> Iterator[tuple[Line, Spread]]:
    for line in lines:
        if found := line.score(metric, score):
            yield line, found


def draw_reliability(lines: Sequence[Line], title: str) -> Figure | None:
    """A panel for each figure of the scores: a group of bars per answer type, a bar per editor."""
    largest = at_largest(lines)
    kinds = [
        kind for kind in answer_types(largest) if any(line.count("reliability", answer_type=kind) for line in largest)
    ]
    if not kinds:
        return None
    figures = reported(largest)
    figure = new_figure(1.0 + 3.0 * len(figures))
    panels = panels_of(figure, len(figures), 1)
    editors = sorted({line.editor for line in lines})
    width = 0.84 / len(largest)
    for panel, (score, name) in zip(panels, figures, strict=True):
        for place, line in enumerate(largest):
            color, _ = style(editors.index(line.editor))
            for group, kind in enumerate(kinds):
                found = line.score("reliability", score, kind)
                middle = group + (place - (len(largest) - 1) / 2) * width
                hatch = "" if line.complete else "///"
                draw_bar(panel, middle, width * 0.92, found, color, hatch)
        percent_axis(panel, top=112.0)
        panel.set_title(name, fontsize=11)
        panel.set_ylabel("%")
        panel.set_xlim(-0.5, len(kinds) - 0.5)
        labels = [f"{plain(kind)}\n({_sample_count(largest, kind)})" for kind in kinds]
        panel.set_xticks(range(len(kinds)), labels, fontsize=10 if len(kinds) <= 10 else 8)
    set_title(figure, title)
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=style(editors.index(line.editor))[0],
            edgecolor="white",
            hatch="" if line.complete else "///",
            label=plain(line.label),
        )
        for line in largest
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    return figure


def _sample_count(lines: Sequence[Line], kind: str) -> str:
    """Samples of one seed, as a range where editors or seeds differ."""
    counts = [metrics.get("reliability", {}).get("count") or 0 for line in lines for metrics in line.metrics(kind)]
    low, high = min(counts), max(counts)
    return f"n = {low:,}" if low == high else f"n = {low:,}–{high:,}"


def draw_heat_maps(lines: Sequence[Line], title: str) -> Figure | None:
    """One map per editor: answer types down, metrics across; exact match as colour, all figures as numbers."""
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
    figures = [score for score, _ in reported(largest)]
    figure = new_figure(2.0 + height_rows * (1.3 + 0.24 * len(figures) * len(kinds)))
    panels = panels_of(figure, height_rows, columns)
    colors_shown: Any = None
    for place, (line, panel) in enumerate(zip(largest, panels, strict=False)):
        colors_shown = _draw_map(panel, line, kinds, names, figures, labelled=place % columns == 0)
    for panel in panels[len(largest) :]:
        panel.remove()
    figure.colorbar(colors_shown, ax=panels[: len(largest)], label="Exact match, %", shrink=0.8, aspect=30)
    set_title(figure, f"{title}\nfrom above: {', '.join(_SHORT[score] for score in figures)}, in %")
    return figure


def _draw_map(
    panel: Axes, line: Line, kinds: Sequence[str], names: Sequence[str], figures: Sequence[str], *, labelled: bool
) -> Any:
    from matplotlib import colormaps

    exact = [[line.score(name, "exact_match", kind) for name in names] for kind in kinds]
    values = [[float("nan") if found is None else found.mean for found in row] for row in exact]
    colors = colormaps["cividis"].with_extremes(bad="#E6E6E6")
    colors_shown = panel.imshow(values, cmap=colors, vmin=0, vmax=100, aspect="auto")
    for i, kind in enumerate(kinds):
        for j, name in enumerate(names):
            numbers = [_number(line.score(name, score, kind)) for score in figures]
            text = "\n".join(numbers) if set(numbers) != {"–"} else "–"
            found = exact[i][j]
            dark = found is not None and found.mean < 55
            panel.text(j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black")
    panel.set_xticks(range(len(names)), [_broken(metric_label(name)) for name in names], fontsize=7.5)
    panel.set_yticks(range(len(kinds)), [plain(kind) for kind in kinds] if labelled else [""] * len(kinds))
    panel.tick_params(length=0)
    panel.set_title(plain(line.label), fontsize=11)
    return colors_shown


def _number(found: Spread | None) -> str:
    return "–" if found is None else f"{found.mean:.1f}"


def _legend(
    figure: Figure,
    editors: Sequence[str],
    scores: Sequence[str],
    *,
    incomplete: bool,
    bands: bool,
    among: Sequence[str] | None = None,
) -> None:
    """among: all editors of the report, which decide the colours; by default `editors`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for editor in editors:
        color, marker = style((among or editors).index(editor))
        handles.append(Line2D([], [], color=color, marker=marker, label=plain(editor)))
    for score in scores:
        handles.append(Line2D([], [], color="#555555", linestyle=_STROKES[score], label=_SHORT[score]))
    if bands:
        handles.append(Patch(color="#555555", alpha=0.15, label="± std over seeds"))
    if incomplete:
        handles.append(Line2D([], [], color="#555555", marker="X", linestyle="", label="not complete"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False)


def _broken(label: str) -> str:
    return plain(label).replace(" ", "\n")


def _free_name(name: str, taken: set[str]) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    candidates = (f"{slug}{end}.png" for end in ("", *(f"-{i}" for i in range(2, len(taken) + 3))))
    return next(candidate for candidate in candidates if candidate not in taken)
