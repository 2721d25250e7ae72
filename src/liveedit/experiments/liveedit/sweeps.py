"""Figures 3, 4 and 5 of the LiveEdit paper: editors of other sizes and at other layers, each trained separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from ...backbones import Backbone
from ...editors.liveedit import LiveEdit
from ...errors import InvalidInputError
from ...evaluation.lines import Line, at_largest, lines_of
from ...evaluation.scoring import SCORES
from ..experiment import Experiment
from ..jobs import Row
from ..report.averages import average_spread, in_order
from ..report.figures import Circle, draw_circles, draw_lines
from ..report.report import Drawing, Findings
from ..report.tables import paper_table
from ..runs import BenchOptions, EditorChoice
from .trained_runs import TrainedRun, Training

Grid = Mapping[str, Sequence[int]]
"""Values by setting of the editor; every combination is trained."""


@dataclass(frozen=True)
class Sweep:
    """A figure: the settings that it varies, their values, and the paper's result."""

    name: str
    title: str
    letters: Mapping[str, str]
    """The paper's letter for each setting that varies."""
    grid: Grid
    """The default values; empty if the backbone determines them."""
    paper: str


FIGURE_3: Final = Sweep(
    "figure3",
    "Module width and rank (LiveEdit paper, figure 3)",
    {"module_width": "d_m", "rank": "r"},
    {"module_width": (32, 64, 128, 256), "rank": (1, 2, 4, 8)},
    "The paper (BLIP2-OPT, E-VQA, 1,000 edits): more of either improves the average, less and less; combinations on a "
    "diagonal are about as good; d_m decides the number of parameters. It takes d_m = 1024 and r = 4 at d = 4096. The "
    "values here are scaled to the built-in backbones' d = 192.",
)
FIGURE_4: Final = Sweep(
    "figure4",
    "Feature size k (LiveEdit paper, figure 4)",
    {"feature_parts": "k"},
    {"feature_parts": (1, 2, 4, 8, 16)},
    "The paper (BLIP2-OPT, E-VQA, 1,000 edits; k = 1, 2, 4, 8, 16): a larger k extracts features better, and one too "
    "large brings noise and wrong matches, which modal locality shows. It takes k = 4.",
)
FIGURE_5: Final = Sweep(
    "figure5",
    "Edit layer l_e (LiveEdit paper, figure 5)",
    {"layer": "l_e"},
    {},
    "The paper (BLIP2-OPT of 32 layers, E-VQA, 1,000 edits): the deeper the better up to layer 21, two thirds of the "
    "depth, and a little worse after it. Layers are counted from 0 here.",
)

SWEEPS: Final = {figure.name: figure for figure in (FIGURE_3, FIGURE_4, FIGURE_5)}


def sweep(
    figure: Sweep,
    out: Path,
    backbone: Backbone,
    name: str = "tiny-blip2",
    grid: Grid | None = None,
    data: str = "world",
    edits: Sequence[int] = (1000,),
    seeds: Sequence[int] = (0, 1, 2),
    training: Training | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """A run for each combination of the grid. backbone: the loaded backbone of this name, which has the layers.

    Raises `InvalidInputError` for a grid of other settings than the figure's, `ConfigError` for values that the
    editor does not take, before anything is trained.
    """
    values = {**_default_grid(figure, backbone), **(grid or {})}
    if unknown := sorted(values.keys() - figure.letters.keys()):
        raise InvalidInputError(f"{figure.name} does not vary {', '.join(unknown)}. Give {', '.join(figure.letters)}.")
    numbers, orders = tuple(sorted(set(edits))), tuple(dict.fromkeys(seeds))
    general, how = options or BenchOptions(cases=max(numbers)), training or Training()
    runs = []
    for combination in product(*(dict.fromkeys(values[setting]) for setting in figure.letters)):
        settings = dict(zip(figure.letters, combination, strict=True))
        how.setup(backbone, LiveEdit.training_cases, settings)
        choice = EditorChoice(_label(settings), LiveEdit.name)
        runs.append(TrainedRun(out, name, data, choice, numbers, orders, general, 0, tuple(settings.items()), how))
    # The middle of the grid runs first: it shows early whether the others are worth the time.
    middle = len(runs) // 2
    jobs = sorted(range(len(runs)), key=lambda place: abs(place - middle))
    ordered = tuple(runs[place] for place in jobs)
    return Experiment(figure.name, ordered, partial(summarize, figure, how), {"training": how.summarized})


def layers_of(backbone: Backbone) -> tuple[int, ...]:
    """The layers that LiveEdit can edit: those with another layer after them, from the first resumable one."""
    return tuple(range(backbone.first_edit_layer, len(backbone.layers) - 1))


def summarize(figure: Sweep, training: Training, rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """Table and figure of a sweep, and the settings of its best average."""
    if not rows:
        return Findings(figure.title, (), (), ("Nothing could be measured.", figure.paper), failed=failed)
    settings = {row["editor"]: row["settings"] for row in rows}
    order = sorted(settings, key=lambda label: [settings[label][name] for name in figure.letters])
    lines = in_order(lines_of(rows), order)
    largest = at_largest(lines)
    best = [_best(figure, largest, settings, score) for score, _ in SCORES]
    share = f", {training.steps_share:.0%} of the steps" if training.steps_share != 1 else ""
    how = f"Each combination is trained separately ({training.form} form{share}); ± is over edits, not over trainings."
    return Findings(
        title=figure.title,
        rows=rows,
        tables=[paper_table(lines, figure.title)],
        summary=[sentence for sentence in best if sentence] + [how, figure.paper],
        drawings=(_drawing(figure, largest, rows, settings),),
        failed=failed,
        extra={"best": [sentence for sentence in best if sentence]},
    )


def _best(figure: Sweep, lines: Sequence[Line], settings: Mapping[str, Mapping[str, int]], score: str) -> str:
    found = {line.editor: spread for line in lines if (spread := average_spread(line, score)) is not None}
    if not found:
        return ""
    ranked = sorted(found, key=lambda label: -found[label].mean)
    best, worst = ranked[0], ranked[-1]

    def named(label: str) -> str:
        values = ", ".join(f"{letter} = {settings[label][name]}" for name, letter in figure.letters.items())
        return f"{values} ({found[label].mean:.1f}" + (
            f"±{found[label].std:.1f})" if found[label].std is not None else ")"
        )

    scored = dict(SCORES)[score].lower()
    return f"{lines[0].edits:,} edits, {scored}: the best average is at {named(best)}, the worst at {named(worst)}."


def _drawing(
    figure: Sweep, lines: Sequence[Line], rows: Sequence[Row], settings: Mapping[str, Mapping[str, int]]
) -> Drawing:
    def draw(folder: Path) -> list[Any]:
        file, names = folder / f"{figure.name}.png", list(figure.letters)
        if len(names) == 1:
            values = {label: float(given[names[0]]) for label, given in settings.items()}
            return [draw_lines(lines, values, figure.letters[names[0]], file, figure.title)]
        parameters = {row["editor"]: row["training"]["parameters"] for row in rows}
        circles = [_circle(line, [str(settings[line.editor][name]) for name in names], parameters) for line in lines]
        return [draw_circles(circles, (figure.letters[names[0]], figure.letters[names[1]]), file, figure.title)]

    return draw


def _circle(line: Line, place: Sequence[str], parameters: Mapping[str, int]) -> Circle:
    found = {score: spread.mean for score, _ in SCORES if (spread := average_spread(line, score)) is not None}
    return Circle(place[0], place[1], parameters[line.editor], found)


def _default_grid(figure: Sweep, backbone: Backbone) -> Grid:
    return figure.grid or {"layer": layers_of(backbone)}


def _label(settings: Mapping[str, int]) -> str:
    return " ".join([LiveEdit.name, *(f"{name}={value}" for name, value in settings.items())])
