"""Table 2 of the LiveEdit paper: the editor without one of its parts, each trained separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...errors import InvalidInputError
from ...evaluation.lines import Line, at_largest, lines_of
from ...evaluation.published import published_ablation_table
from ...evaluation.report_tables import cost_table
from ...evaluation.scoring import SCORES, Spread
from ..experiment import Experiment
from ..jobs import Row
from ..papers import OWN, UNEDITED
from ..report.averages import averages, in_order
from ..report.figures import draw_bars
from ..report.report import Findings
from ..report.tables import harder_table, paper_table
from ..runs import BenchOptions, EditorChoice, Run
from .trained_runs import TrainedRun, Training

NAME: Final = "table2"
TITLE: Final = "Ablation of LiveEdit (LiveEdit paper, table 2)"


@dataclass(frozen=True)
class Setting:
    """A line of the table: its name here and in the paper, its meaning, and the settings that it changes."""

    name: str
    paper_name: str
    meaning: str
    settings: tuple[tuple[str, Any], ...] = ()


_UNEDITED: Final = Setting(UNEDITED, "N/A", "the unedited model")
FULL: Final = Setting(OWN, "LiveEdit", "everything")
WITHOUT: Final = (
    Setting(
        "liveedit-without-sr1",
        "- l_sr1",
        "without the absolute soft-routing loss and the sigmoid in the weights",
        (("soft_terms", "relative"), ("soft_factors", "relative")),
    ),
    Setting(
        "liveedit-without-sr2",
        "- l_sr2",
        "without the relative soft-routing loss and the softmax in the weights",
        (("soft_terms", "absolute"), ("soft_factors", "absolute")),
    ),
    Setting(
        "liveedit-without-sr", "- SR", "all experts that pass hard routing weigh the same", (("soft_routing", False),)
    ),
    Setting(
        "liveedit-hr-star",
        "HR*",
        "hard routing compresses the whole image, whatever is asked",
        (("hard_prompt", False),),
    ),
)
"""Losses and weights go together: the paper describes "- l_sr1" as weights that always sum to 1, and "- l_sr2" as
absolute weights whose sum may exceed 1 (section 5.4)."""

SETTINGS: Final = (_UNEDITED, FULL, *WITHOUT)


def ablation(
    out: Path,
    names: Sequence[str] = (),
    backbone: str = "tiny-blip2",
    data: str = "world",
    edits: Sequence[int] = (1000,),
    seeds: Sequence[int] = (0, 1, 2),
    training: Training | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """A run for each setting, and the report. names: names in `SETTINGS`; empty for all.

    Raises `InvalidInputError` for a name that is not among them.
    """
    known = {setting.name: setting for setting in SETTINGS}
    if unknown := sorted(set(names) - known.keys()):
        raise InvalidInputError(f"There is no setting {', '.join(unknown)}. Give some of {', '.join(known)}.")
    chosen = [known[name] for name in names or known]
    numbers, orders = tuple(sorted(set(edits))), tuple(dict.fromkeys(seeds))
    general = options or BenchOptions(cases=max(numbers))
    how = training or Training()

    def run(setting: Setting, stage: int) -> Run:
        name = setting.name if setting == _UNEDITED else FULL.name
        plain = Run(out, backbone, data, EditorChoice(setting.name, name), numbers, orders, general, stage)
        if setting == _UNEDITED:
            return plain
        return TrainedRun(**vars(plain), settings=setting.settings, training=how)

    jobs = tuple(run(setting, stage) for stage, setting in enumerate(chosen))
    return Experiment(NAME, jobs, partial(summarize, how), {"training": how.summarized})


def summarize(training: Training, rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """The table with the paper's names, the effect of each part, and the published values."""
    published = (published_ablation_table(),)
    if not rows:
        return Findings(TITLE, (), (), ("Nothing could be measured.",), (), published, failed)
    named = {setting.name: setting for setting in SETTINGS}
    lines = in_order(lines_of(rows), list(named))
    shown = [replace(line, editor=named[line.editor].paper_name) for line in lines]
    notes = tuple(f"{setting.paper_name}: {setting.meaning}." for setting in SETTINGS[2:])
    table = paper_table(shown, TITLE)
    worth = [sentence for score, _ in SCORES for sentence in _worth(lines, score)]
    candidates = (
        replace(table, header=("Setting", *table.header[1:]), notes=(*table.notes, *notes, _trained_how(training))),
        harder_table(shown, "Harder probes, which the paper does not have"),
        cost_table(shown),
    )
    return Findings(
        title=TITLE,
        rows=rows,
        tables=[found for found in candidates if found is not None],
        summary=worth,
        drawings=(lambda folder: [draw_bars(at_largest(shown), folder / "table2.png", TITLE)],),
        published=published,
        failed=failed,
        extra={"worth": worth},
    )


def _trained_how(training: Training) -> str:
    share = "" if training.steps_share == 1 else f", {training.steps_share:.0%} of the steps"
    return f"Each setting is trained separately ({training.form} form{share}); ± is over edits, not over trainings."


def _worth(lines: Sequence[Line], score: str) -> list[str]:
    """By how much the average falls without each part, after the most edits."""
    largest = {line.editor: line for line in at_largest(lines) if line.complete}
    whole = largest.get(FULL.name)
    if whole is None:
        return []
    where = f"{whole.edits:,} edits, {dict(SCORES)[score].lower()}"
    own, sentences = averages(whole, score), []
    gained = _fall(own, largest.get(_UNEDITED.name), score)
    if gained is not None and gained.mean <= 0:
        sentences.append(
            f"{where}: {FULL.paper_name} is no better than the unedited model. The effect of its parts cannot be "
            "measured here; train longer."
        )
    for setting in WITHOUT:
        fall = _fall(own, largest.get(setting.name), score)
        if fall is not None:
            sure = "one seed" if fall.low is None else f"95 % interval {fall.low:.1f} to {fall.high:.1f}"
            sentences.append(
                f"{where}: {setting.paper_name} ({setting.meaning}) {'costs' if fall.mean > 0 else 'gains'} "
                f"{abs(fall.mean):.1f} points of the average ({sure})."
            )
    return sentences


def _fall(own: Mapping[int, float], other: Line | None, score: str) -> Spread | None:
    """By how much the other line's average lies below, over the seeds that both have."""
    found = {} if other is None else averages(other, score)
    falls = [own[seed] - found[seed] for seed in sorted(own.keys() & found.keys())]
    return Spread.of(falls) if falls else None
