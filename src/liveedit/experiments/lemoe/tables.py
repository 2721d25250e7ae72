"""LEMoE beside the editors that need no training, on language models: edits in batch, in sequence, and passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...editors import editor_names
from ...editors.lemoe import Lemoe, LemoeConfig
from ...evaluation.lines import Line, lines_of
from ...evaluation.report_tables import cost_table, joined_figures, main_table, passage_table, recurring_table
from ...evaluation.scoring import REPORTED
from ...evaluation.table import Table
from ..experiment import Experiment
from ..jobs import Row
from ..papers import LEMOE_RIVALS
from ..report.averages import in_order
from ..report.report import Findings
from ..runs import BenchOptions, EditorChoice, TimedRun
from .figures import BACKBONES, checked_settings

NAME: Final = "lemoe-tables"
TITLE: Final = "LEMoE and the editors that need no training, on language models"
EDITS: Final = (1, 10, 100, 1000)
PASSAGE_EDITS: Final = 600
"""As many as SelfCheckGPT's file has."""

PASSAGE_TOKENS: Final = 64
"""Least length limit of free answers that are passages."""

SEQUENCE: Final = f"{Lemoe.name} in sequence"
"""The label of runs in which no later edit is known when a batch is made."""

_ABOUT: Final = (
    "In batch: all edits are given at once, and LEMoE plans similar ones into one expert. In sequence: they come in a "
    "random order, and each expert has those that follow one another. The other editors make one edit after another in "
    "either case, so that their figures are the same in both tables. The LEMoE paper edits LLaMA2-7B; its "
    "full text was not available, and LEMoE is partly reconstructed here."
)


@dataclass(frozen=True)
class Measured:
    """What the tables are measured on: sources of short answers and of passages, numbers of edits, seeds.

    most_seconds: a cell has further seeds only if one takes less time than this.
    """

    data: Sequence[str] = ("facts",)
    passages: Sequence[str] = ()
    edits: Sequence[int] = EDITS
    passage_edits: int = PASSAGE_EDITS
    seeds: Sequence[int] = (0, 1, 2)
    most_seconds: float = 600.0


def tables(
    out: Path,
    backbones: Sequence[str] = BACKBONES,
    measured: Measured | None = None,
    editors: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    options: BenchOptions | None = None,
) -> Experiment:
    """The runs and their report.

    options: distinct subjects are for short answers; sentences of one passage are all about its subject.
    editors: names, by default those of `LEMOE_RIVALS` that are installed. settings: of LEMoE. Raises `ConfigError` for
    settings that LEMoE does not have or take.
    """
    found = measured or Measured()
    general = options or BenchOptions(cases=max(found.edits))
    changed = checked_settings(settings)
    names = tuple(editors) or tuple(name for name in LEMOE_RIVALS if name in editor_names())
    longest = max(general.max_new_tokens or 0, PASSAGE_TOKENS)
    of_passages = replace(general, passages=True, max_new_tokens=longest, distinct_subjects=False)
    cells = [(edits, source, general) for edits in sorted(set(found.edits)) for source in found.data]
    cells += [(found.passage_edits, source, of_passages) for source in found.passages]
    jobs = [
        TimedRun(
            *(out, backbone, source, editor, (edits,), tuple(dict.fromkeys(found.seeds)), how),
            stage=stage,
            most_seconds=found.most_seconds,
        )
        for stage, (edits, source, how) in enumerate(cells)
        for backbone in backbones
        for editor in _choices(names, changed, edits)
    ]
    labels = [label for name in names for label in ((name, SEQUENCE) if name == Lemoe.name else (name,))]
    return Experiment(NAME, tuple(jobs), partial(summarize, labels), {"labels": labels})


def _choices(names: Sequence[str], settings: tuple[tuple[str, Any], ...], edits: int) -> list[EditorChoice]:
    """The editors; LEMoE a second time, in sequence, if the edits are more than one batch."""
    chosen = [EditorChoice(name, name, None, settings if name == Lemoe.name else ()) for name in names]
    if Lemoe.name in names and edits > LemoeConfig.model_validate(dict(settings)).batch_edits:
        in_sequence = tuple(sorted({**dict(settings), "order": "given"}.items()))
        chosen.append(EditorChoice(SEQUENCE, Lemoe.name, None, in_sequence))
    return chosen


def summarize(labels: Sequence[str], rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> Findings:
    """LEMoE's figures after the most edits, and the tables."""
    if not rows:
        return Findings(TITLE, (), (), ("Nothing could be measured.",), failed=failed)
    lines = in_order(lines_of(rows), labels)
    passages = [line for line in lines if "perplexity" in line.rows[0]]
    short = [line for line in lines if line not in passages]
    candidates = [
        *_both_ways(short, "Short answers"),
        *_both_ways(passages, "Passages"),
        passage_table(passages) if passages else None,
        recurring_table(lines),
        cost_table(lines),
    ]
    return Findings(
        title=TITLE,
        rows=rows,
        tables=[table for table in candidates if table is not None],
        summary=[*_sentences(lines), _ABOUT],
        failed=failed,
    )


def _both_ways(lines: Sequence[Line], title: str) -> list[Table]:
    """The table of edits in batch, and that of edits in sequence, which has no fewer edits than make two batches."""
    together = [line for line in lines if line.editor != SEQUENCE]
    longer = {(*line.section, line.edits) for line in lines if line.editor == SEQUENCE}
    one_by_one = [line for line in lines if (*line.section, line.edits) in longer and line.editor != Lemoe.name]
    named = ((together, f"{title}: edits in batch"), (one_by_one, f"{title}: edits in sequence"))
    return [main_table(chosen, heading) for chosen, heading in named if chosen]


def _sentences(lines: Sequence[Line]) -> list[str]:
    """LEMoE's figures after the most edits of each data set."""
    sentences = []
    for line in lines:
        most = max(other.edits for other in lines if other.section == line.section)
        if line.editor in (Lemoe.name, SEQUENCE) and line.edits == most:
            parts = [
                f"{name.replace('_', ' ')} {joined_figures(_mean(line, name, score) for score, _ in REPORTED)}"
                for name in ("reliability", "text_generality", "text_locality")
                if line.count(name)
            ]
            where = f"{line.backbone}, {line.data}, {line.edits:,} edits, {line.editor}"
            sentences.append(f"{where}: {', '.join(parts)} (teacher-forced / exact match / broken answers, in %).")
    return sentences


def _mean(line: Line, metric: str, score: str) -> str:
    spread = line.score(metric, score)
    return "–" if spread is None else f"{spread.mean:.1f}"
