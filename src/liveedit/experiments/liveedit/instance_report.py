"""The report of figures 6 and 7 of the LiveEdit paper: the attribution of questions, beside the nearest edits.

report.md         to read: the figure, and a table of the active edits for each question
attribution.json  all numbers: maps of the images, margins, scores and weights of all edits
attribution.png   the figure, if matplotlib is installed; images/ has the images that it shows

Drawn from plain data, which any editor with a router can give: a list of entries as in `attribution.json`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from ...evaluation.plotting import COLORS, PlotsUnavailableError, new_figure, plain, save, set_title
from ...evaluation.report import origin, ways_of
from ...evaluation.table import Table, markdown_text
from ..jobs import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = Mapping[str, Any]
"""One question: backbone, kind, image, prompt, unedited_answer, answer, sentinel, attention, change (maps with
`kind`, `over`, `values`, `note`) and candidates (edit_id, prompt, answer, image, margin, passed, score, weight,
weight_of_all, attention), the nearest first. `image` is a key of `images`."""

SHOWN: Final = 3
"""Edits beside each question, as in the paper."""

_DARKEST: Final = 0.85
_PASSED, _FILTERED = COLORS[2], "#888888"
_HEADS: Final = ("Image", "Attention", "Change when covered")


def write_attribution(
    entries: Sequence[Entry],
    images: Mapping[str, Image.Image],
    folder: Path,
    title: str,
    remarks: Sequence[str] = (),
    provenance: Mapping[str, Row] | None = None,
) -> Path:
    """Write figure, numbers and images into `folder`; returns the path of its report.md.

    provenance: of the questions of each backbone, by its name, as `Provenance.of_row` gives it. Without matplotlib
    there is no figure; the report then says so.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / "images" / name)
    origins = dict(provenance or {})
    content = {"title": title, "remarks": list(remarks), "provenance": origins, "questions": list(entries)}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "attribution.json").write_text(text + "\n", encoding="utf-8")
    caption = (
        "Each row is a question: its image, bright where attention is high, and the edits with the most similar "
        "images, with their margins over the sentinel, bright where attention was high when the edit was made."
    )
    try:
        draw_attribution(entries, images, folder / "attribution.png", title)
        shown = f"![{caption}](attribution.png)\n\n*{caption}*"
    except PlotsUnavailableError as error:
        shown = f"No figure: {error}"
    tables = [_table(number, entry).markdown().rstrip() for number, entry in enumerate(entries, 1)]
    parts = [f"# {markdown_text(title)}", *map(markdown_text, remarks), shown, *tables, *_origins(origins)]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")
    return report


def _origins(provenance: Mapping[str, Row]) -> list[str]:
    """Which code, backbones, data, packages and command the questions come from."""
    items = [f"- {origin(record)}: {markdown_text(name)}" for name, record in provenance.items()]
    items += dict.fromkeys(f"- {how}" for record in provenance.values() for how in ways_of(record))
    return ["## Provenance", "\n".join(items)] if items else []


def _table(number: int, entry: Entry) -> Table:
    """The active edits for this question: those that passed hard routing, and the nearest of those filtered."""
    candidates = entry["candidates"]
    listed = [one for place, one in enumerate(candidates) if one["passed"] or place < SHOWN]
    rows = tuple(
        (
            one["edit_id"],
            one["prompt"],
            one["answer"],
            _fate(one),
            f"{one['margin']:+.3f}",
            f"{one['score']:.2f}",
            _weight(one["weight"]),
            _weight(one["weight_of_all"]),
        )
        for one in listed
    )
    passed = sum(one["passed"] for one in candidates)
    answer = entry["answer"] or "(nothing)"
    return Table(
        title=f"{number}. {entry['backbone']}, {entry['kind']}: {entry['prompt']}",
        header=("Edit", "Asks", "Answer", "Hard routing", "Margin", "Score", "Weight", "Had all passed"),
        rows=rows,
        notes=(
            f"The model answers {answer!r}; unedited it answers {entry['unedited_answer']!r}.",
            f"{passed} of {len(candidates)} edits passed hard routing; filtered edits are listed if they are among the "
            f"{SHOWN} nearest.",
            f"Attention: {entry['attention']['note']}. Largest change: {_largest(entry['change'])}.",
        ),
        text_columns=4,
    )


def _fate(one: Mapping[str, Any]) -> str:
    if not one["passed"]:
        return "filtered"
    return "passed" if one["weight"] > 0 else "passed, left out"


def _weight(value: float) -> str:
    return "0" if value == 0 else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _largest(change: Mapping[str, Any]) -> str:
    places = [(value, row, column) for row, line in enumerate(change["values"]) for column, value in enumerate(line)]
    value, row, column = max(places, key=lambda place: place[0])
    return f"{value:.3f} at row {row + 1}, column {column + 1} of {len(change['values'])}"


# -- the figure ------------------------------------------------------------------------------------------


def draw_attribution(entries: Sequence[Entry], images: Mapping[str, Image.Image], file: Path, title: str) -> None:
    """A row per question: its image, the two maps, the nearest edits with their own maps, and the soft weights.

    Raises `PlotsUnavailableError` without matplotlib.
    """
    figure = new_figure(1.0 + 2.5 * len(entries))
    ratios = [1.0] * (len(_HEADS) + SHOWN) + [1.5]
    grid = figure.subplots(len(entries), len(ratios), squeeze=False, width_ratios=ratios)
    for number, (entry, panels) in enumerate(zip(entries, grid, strict=True), 1):
        heads = _HEADS if number == 1 else ("",) * len(_HEADS)
        _draw_query(panels[: len(_HEADS)], entry, images[entry["image"]], number, heads)
        nearest = entry["candidates"][:SHOWN]
        for place, panel in enumerate(panels[len(_HEADS) : -1]):
            if place < len(nearest):
                _draw_edit(panel, nearest[place], images, place)
            else:
                panel.remove()
        _draw_weights(panels[-1], nearest, headed=number == 1)
    set_title(figure, title)
    save(figure, file, title)


def _draw_query(panels: Sequence[Axes], entry: Entry, image: Image.Image, number: int, heads: Sequence[str]) -> None:
    _draw_map(panels[0], image, None)
    _draw_map(panels[1], image, entry["attention"])
    _draw_map(panels[2], image, entry["change"])
    for panel, head in zip(panels, heads, strict=True):
        panel.set_title(head, fontsize=9)
    asked = f"{number}. {entry['backbone']}, {entry['kind']}: {entry['prompt']}"
    answers = f"{entry['unedited_answer'] or '(nothing)'} → {entry['answer'] or '(nothing)'}"
    panels[0].set_xlabel(f"{_wrapped(asked)}\n{_wrapped(answers)}", fontsize=7.5)


def _draw_edit(panel: Axes, one: Mapping[str, Any], images: Mapping[str, Image.Image], place: int) -> None:
    _draw_map(panel, images[one["image"]], one["attention"])
    color = _PASSED if one["passed"] else _FILTERED
    panel.spines[:].set(color=color, linewidth=3, visible=True)
    panel.set_title(f"{_fate(one)}, {one['margin']:+.2f}", fontsize=8, color=color)
    label = f"({place + 1}) {one['prompt']} {one['answer']}"
    panel.set_xlabel(_wrapped(label), fontsize=7.5)


def _draw_map(panel: Axes, image: Image.Image, found: Mapping[str, Any] | None) -> None:
    """The image with a map over it, or bars if the map is over tokens."""
    panel.set_xticks([])
    panel.set_yticks([])
    if found is not None and found["over"] == "tokens":
        shares = found["values"][0]
        panel.bar(range(len(shares)), shares, color=COLORS[0])
        panel.set_box_aspect(1)
        return
    extent = (0.0, float(image.width), float(image.height), 0.0)
    panel.imshow(image, extent=extent, interpolation="nearest")
    if found is not None:
        panel.imshow(_shade(found["values"]), extent=extent, interpolation="nearest")


def _shade(values: Sequence[Sequence[float]]) -> list[list[tuple[float, float, float, float]]]:
    """Black over cells of low attention: a coloured map could be taken for colours of the image."""
    top = max(max(row) for row in values) or 1.0
    return [[(0.0, 0.0, 0.0, _DARKEST * (1 - value / top)) for value in row] for row in values]


def _draw_weights(panel: Axes, nearest: Sequence[Mapping[str, Any]], *, headed: bool) -> None:
    places = range(len(nearest))
    panel.barh(places, [one["weight"] for one in nearest], 0.5, color=COLORS[0])
    panel.barh(places, [one["weight_of_all"] for one in nearest], 0.8, fill=False, edgecolor="black", linewidth=0.8)
    for place, one in enumerate(nearest):
        panel.text(1.02, place, _weight(one["weight"]), va="center", fontsize=7.5)
    panel.set_xlim(0, 1)
    panel.set_ylim(SHOWN - 0.4, -0.6)
    panel.set_yticks(list(places), [f"({place + 1})" for place in places], fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    if headed:
        panel.set_title("Soft weights\n(outlined: had all passed)", fontsize=9)


def _wrapped(text: str) -> str:
    return plain(textwrap.fill(text, 24))
