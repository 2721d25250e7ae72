"""Whether the report in a folder agrees with its rows, and its rows with their raw answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, NotFoundError
from ..evaluation.harnesses.measuring import GENERAL_ABILITY
from ..evaluation.protocol import RawAnswer, raw_cases, scored_again
from ..evaluation.report import BENCH
from ..evaluation.robustness.measuring import ROBUSTNESS
from ..evaluation.verification import (
    ROWS,
    Verification,
    bench_again,
    check_files,
    check_reported,
    check_texts,
    differences,
    made,
    scores_again,
    verify_bench,
    verify_general_ability,
    verify_robustness,
)
from ..progress import Progress, no_progress
from . import comparison
from .experiment import Summarize
from .jobs import Row
from .lemoe import figures, tables
from .lemoe.runs import scores_of
from .liveedit import ablation, forms, sweeps
from .liveedit.trained_runs import Training
from .papers import TABLES
from .report.report import findings_texts, further_results


def verify_folder(folder: Path, progress: Progress = no_progress) -> Verification:
    """Verify a folder of the bench, of the robustness measurement or of an experiment: see `Verification`.

    Raises `NotFoundError` if it has no rows.json, `InvalidInputError` if that does not say what it is the report of.
    """
    file = folder / ROWS
    if not file.is_file():
        raise NotFoundError(f"{folder} has no {ROWS}. Give the folder that a bench, robustness or paper command wrote.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        name = content["report"]["of"]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{file} does not say what it is the report of ({type(error).__name__}: {error}). If an earlier version "
            "wrote it, run the same command again: it reads the rows that are there, and writes the report anew."
        ) from error
    found = Verification(folder, progress)
    known = {BENCH: verify_bench, ROBUSTNESS: verify_robustness, GENERAL_ABILITY: verify_general_ability}
    verify = known.get(name, _verify_experiment)
    verify(found, content)
    return found


def summarizer(report: Mapping[str, Any]) -> Summarize:
    """The function that made the findings of a report. Raises `InvalidInputError` for an unknown experiment."""
    name = report["of"]
    if name in TABLES:
        return partial(comparison.summarize, TABLES[name], report["labels"])
    if name == ablation.NAME:
        return partial(ablation.summarize, Training(**report["training"]))
    if name == forms.NAME:
        return partial(forms.summarize, Training(**report["training"]))
    if name in sweeps.SWEEPS:
        return partial(sweeps.summarize, sweeps.SWEEPS[name], Training(**report["training"]))
    if name == tables.NAME:
        return partial(tables.summarize, report["labels"])
    if name in (figures.FIGURE_2, figures.FIGURE_3):
        return figures.summarize_2 if name == figures.FIGURE_2 else figures.summarize_3
    raise InvalidInputError(f"There is no experiment {name!r}, which {ROWS} is said to be the report of.")


def _verify_experiment(found: Verification, content: Mapping[str, Any]) -> None:
    rows, summarize = content["rows"], summarizer(content["report"])
    kept = check_files(found, "runs/*/results/*.json", bench_again) | check_files(found, "runs/*/*.json", _lemoe_again)
    check_reported(found, rows, kept)
    failed = [(one["job"], one["error"]) for one in content["failed"]]
    findings = made(found, lambda: summarize(rows, failed))
    if findings is not None:
        for text in differences(content, further_results(findings)):
            found.disagree(found.folder / ROWS, text)
        check_texts(found, findings_texts(findings))


def _lemoe_again(rows: Sequence[Row], answers: Sequence[RawAnswer]) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows of a run of LEMoE share a file of answers: those of each row follow one another, batch by batch."""
    cases, of_rows, batches = raw_cases(answers), [], []
    for row in rows:
        start = len(batches)
        for size in row["batch_sizes"]:
            batches.append(scored_again(cases[:size]))
            cases = cases[size:]
        of_rows.append(scores_of(batches[start:]))
    if cases:
        raise InvalidInputError(f"it has the answers of {len(cases)} edits more than the rows")
    return of_rows, scores_again(batches)
