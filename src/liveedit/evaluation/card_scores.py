"""What a report of the bench says of one editor, for its model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InvalidInputError
from ..hub.cards import Score
from .lines import Line, Row, lines_of, metric_names


def scores_of_report(folder: Path, editor_digest: str) -> list[Score]:
    """The scores of the complete rows that were measured with the editor of this digest.

    folder: of `liveedit bench --out`. Raises `InvalidInputError` if it has no report of the bench, or no such row.
    """
    file = folder / "rows.json"
    try:
        rows: Sequence[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"]
        own = [row for row in rows if row["provenance"]["config"]["editor_digest"] == editor_digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{file} holds no rows of the bench ({error!r}). Give the folder of `liveedit bench --out`."
        ) from error
    complete = [line for line in lines_of(own) if line.complete] if own else []
    if not complete:
        raise InvalidInputError(
            f"None of the {len(rows)} rows in {file} is a complete one of the editor with the digest "
            f"{editor_digest[:12]}. Measure it with `liveedit bench`, or leave the results out."
        )
    return [score for line in complete for score in _scores(line)]


def _scores(line: Line) -> Iterator[Score]:
    digests = {row["provenance"]["backbone_digest"] for row in line.rows}
    for metric in metric_names([line]):
        forced, exact, broken = (line.score(metric, kind) for kind in ("teacher_forced", "exact_match", "broken"))
        if forced is not None and exact is not None:
            yield Score(
                line.editor,
                line.data,
                ", ".join(sorted(digests)),
                line.edits,
                metric,
                forced.mean,
                exact.mean,
                None if broken is None else broken.mean,
                line.seeds,
            )
