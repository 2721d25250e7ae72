"""Model cards: what a repository holds, what it was made with and for, and every figure that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants

from .repositories import split_name

LIBRARY = "liveedit"


@dataclass(frozen=True)
class Score:
    """What was measured of one metric after a number of edits, in percent; means over seeds.

    data, backbone_digest: what it was measured on. editor: its name in the measurement. metric: such as reliability.
    broken: broken answers, None if they were not counted.
    """

    editor: str
    data: str
    backbone_digest: str
    edits: int
    metric: str
    teacher_forced: float
    exact_match: float
    broken: float | None
    seeds: int


def card(
    *,
    title: str,
    summary: str,
    facts: Mapping[str, object],
    usage: str,
    backbone: str,
    scores: Sequence[Score] = (),
    license: str | None = None,
    tags: Iterable[str] = (),
) -> ModelCard:
    """A card with metadata for the hub and text for people.

    facts: rows of a table; None is left out. usage: code. backbone: its name; that of a hub becomes the base model.
    license: as the hub names it, such as apache-2.0.
    """
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        base_model=backbone if split_name(backbone) is not None else None,
        tags=sorted({LIBRARY, "model-editing", *tags}),
        model_name=title if scores else None,
        eval_results=[result for score in scores for result in _results(score)] or None,
    )
    rows = {**facts, "licence": license or "not given", "made with": f"{LIBRARY} {metadata.version(LIBRARY)}"}
    parts = [
        f"# {title}",
        summary,
        _table(("", ""), [(name, str(value)) for name, value in rows.items() if value is not None]),
        *_measured(scores),
        f"## Use\n\n{usage}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n", ignore_metadata_errors=False)


def _results(score: Score) -> Iterable[EvalResult]:
    for kind, value in (
        ("teacher-forced", score.teacher_forced),
        ("exact match", score.exact_match),
        ("broken answers", score.broken),
    ):
        if value is not None:
            yield EvalResult(
                task_type="visual-question-answering",
                dataset_type=score.data,
                dataset_name=score.data,
                metric_type=f"{score.metric} {kind}",
                metric_name=f"{score.metric} after {score.edits:,} edits, {kind}, {score.editor}",
                metric_value=round(value, 2),
                metric_args={"edits": score.edits, "seeds": score.seeds},
            )


def _measured(scores: Sequence[Score]) -> Iterable[str]:
    if not scores:
        return
    yield "## Measured by `liveedit bench`"
    yield (
        "In percent, means over seeds. A broken answer is neither the edit's, nor the unedited model's, nor another "
        "label of its case."
    )
    header = ("editor", "data", "backbone", "edits T", "metric", "teacher-forced", "exact match", "broken", "seeds")
    rows = [
        (
            one.editor,
            one.data,
            one.backbone_digest[:12],
            f"{one.edits:,}",
            one.metric.replace("_", " "),
            f"{one.teacher_forced:.1f}",
            f"{one.exact_match:.1f}",
            "" if one.broken is None else f"{one.broken:.1f}",
            str(one.seeds),
        )
        for one in scores
    ]
    yield _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def hub_address(repository: str) -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{repository}"
