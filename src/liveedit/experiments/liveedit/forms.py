"""From the paper's exact form of LiveEdit to the improved one, a switch at a time, each form trained separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...backbones import Backbone
from ...editors.liveedit import LiveEdit
from ...evaluation.lines import Line, at_largest, lines_of
from ...evaluation.report_tables import cost_table
from ...evaluation.scoring import SCORES
from ..experiment import Experiment
from ..jobs import Row
from ..papers import OWN, UNEDITED
from ..report.averages import average_spread, in_order
from ..report.figures import draw_bars
from ..report.report import Findings
from ..report.tables import harder_table, paper_table
from ..runs import BenchOptions, EditorChoice, Run
from .trained_runs import TrainedRun, Training

NAME: Final = "forms"
TITLE: Final = "From the paper's form of LiveEdit to the improved one, a switch at a time"


@dataclass(frozen=True)
class Switch:
    """A step of the way: the settings that take the improved form's values, beside those of all steps before."""

    name: str
    meaning: str
    settings: tuple[str, ...]


SWITCHES: Final = (
    Switch("PyTorch's start", "the paper's form, V's value matrix as PyTorch initialises it", ("value_start",)),
    Switch("paper", "the paper's form: V's value matrix starts as a multiple of the identity", ()),
    Switch("answer embeddings", "the generator also reads the answer's word embeddings", ("answer_source",)),
    Switch(
        "attention and expert",
        "8 heads, norms and biases; normed input and a fixed scale of the expert (released code)",
        ("heads", "norm", "expert_input", "expert_scale", "value_start"),
    ),
    Switch(
        "text tokens",
        "experts change text after the image only, and only questions with an image; the 32 with the most weight",
        ("residual_tokens", "scope", "top_experts"),
    ),
    Switch("features", "k vectors, compared by cosine with a trained temperature", ("features", "similarity")),
    Switch(
        "losses",
        "margins and masked negatives instead of equations 13, 15 and 16; all samples, means, prompt dropout",
        ("hard_loss", "soft_loss", "mixing", "sampling", "reduction", "prompt_dropout"),
    ),
    Switch(
        "optimiser",
        "AdamW with warm-up, cosine and clipping; the best validation selects the weights",
        ("weight_decay", "beta2", "warmup", "decay", "clip", "validate_every", "keep"),
    ),
    Switch("edit layer", "the improved form: the edit layer at two thirds of the depth", ("layer",)),
)
"""The order is that of the forms. "PyTorch's start" is a line before the paper's form, and no part of the way."""


def forms(
    out: Path,
    backbone: Backbone,
    name: str = "tiny-llava",
    data: str = "world",
    edits: Sequence[int] = (1000,),
    seeds: Sequence[int] = (0, 1, 2),
    training: Training | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """A run for each form, and the unedited model. backbone: the loaded backbone of this name.

    training: settings that all forms share, such as the module width, and the edit layer of all forms but the last.
    Raises `ConfigError` for settings that the editor does not have, before anything is trained.
    """
    numbers, orders = tuple(sorted(set(edits))), tuple(dict.fromkeys(seeds))
    general, how = options or BenchOptions(cases=max(numbers)), replace(training or Training(), form="paper")
    plain = Run(out, name, data, EditorChoice(UNEDITED, UNEDITED), numbers, orders, general, 0)
    jobs = [plain]
    for stage, (switch, settings) in enumerate(_cumulative(backbone, how), 1):
        how.setup(backbone, LiveEdit.training_cases, settings)
        changed = {"editor": EditorChoice(switch.name, OWN), "stage": stage}
        jobs.append(TrainedRun(**{**vars(plain), **changed}, settings=tuple(settings.items()), training=how))
    return Experiment(NAME, tuple(jobs), partial(summarize, how), {"training": how.summarized})


def _cumulative(backbone: Backbone, training: Training) -> list[tuple[Switch, dict[str, Any]]]:
    """Each switch with the settings that differ from the paper's form once it is set."""
    shared = dict(training.settings)
    improved = replace(training, form="improved", settings=()).setup(backbone, LiveEdit.training_cases, {}).to_dict()
    values = {name: value for part in improved.values() for name, value in part.items()}
    found: list[tuple[Switch, dict[str, Any]]] = []
    for place, switch in enumerate(SWITCHES):
        before = SWITCHES[1 : place + 1] if place else SWITCHES[:1]
        changed = {name: values[name] for one in before for name in one.settings}
        found.append(
            (switch, {name: value for name, value in changed.items() if name == "layer" or name not in shared})
        )
    return found


def summarize(training: Training, rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """The table of the forms, and by how much each switch changes the average."""
    if not rows:
        return Findings(TITLE, (), (), ("Nothing could be measured.",), failed=failed)
    lines = in_order(lines_of(rows), [UNEDITED, *(switch.name for switch in SWITCHES)])
    notes = tuple(f"{switch.name}: {switch.meaning}." for switch in SWITCHES)
    share = "" if training.steps_share == 1 else f" with {training.steps_share:.0%} of the steps"
    trained = f"Each line has the changes of the lines above it, and is trained separately{share}."
    table = paper_table(lines, TITLE)
    candidates = (
        replace(table, header=("Form", *table.header[1:]), notes=(*table.notes, trained, *notes)),
        harder_table(lines, "Harder probes, which the paper does not have"),
        cost_table(lines),
    )
    return Findings(
        title=TITLE,
        rows=rows,
        tables=[found for found in candidates if found is not None],
        summary=[sentence for score, _ in SCORES for sentence in _changes(lines, score)],
        drawings=(lambda folder: [draw_bars(at_largest(lines), folder / "forms.png", TITLE)],),
        failed=failed,
    )


def _changes(lines: Sequence[Line], score: str) -> list[str]:
    """The average of each form after the most edits, and its difference from the form before."""
    largest = {line.editor: line for line in at_largest(lines) if line.complete}
    sentences, before = [], None
    for switch in SWITCHES:
        spread = average_spread(largest[switch.name], score) if switch.name in largest else None
        if spread is None:
            continue
        change = "" if before is None else f" ({spread.mean - before:+.1f})"
        sentences.append(f"{dict(SCORES)[score]}, {switch.name}: average {spread.mean:.1f}{change}.")
        before = spread.mean
    return sentences
