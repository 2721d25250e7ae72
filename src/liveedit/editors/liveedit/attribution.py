"""Attribution: where in the image a question's visual feature comes from, and how every active edit was routed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch

from ...errors import InvalidInputError
from ...samples import Edit, Question
from ..heat_map import HeatMap
from ..occlusion import change_map
from ..shared.routing import hard_routed, route, soft_weights
from .editor import LiveEdit

_MOST_CELLS: Final = 8
"""Largest number of rows and columns of a map of changes: each of its cells is one image to run."""


@dataclass(frozen=True)
class Candidate:
    """An active edit, as a question was routed. Similarities are in the editor's own units.

    margin: visual similarity minus the sentinel's. score: similarity s of the prompts. passed: by hard routing. weight:
    in the answer; 0 if the edit did not pass or is not among `top_experts`. weight_of_all: the weight if every edit had
    passed hard routing. attention: the attention map of the edit's own question, if it was requested.
    """

    edit_id: str
    prompt: str
    answer: str
    margin: float
    passed: bool
    score: float
    weight: float
    weight_of_all: float
    attention: HeatMap | None = None


@dataclass(frozen=True)
class Attribution:
    """A question against the active edits. candidates: all of them, the largest margin first."""

    prompt: str
    unedited_answer: str
    answer: str
    sentinel: float
    attention: HeatMap
    change: HeatMap
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def attribution(
    editor: LiveEdit, question: Question, edits: Mapping[str, Edit], shown: int = 3, max_new_tokens: int = 16
) -> Attribution:
    """Ask a question with an image, and report how it was routed (figures 6 and 7 of the paper).

    edits: the active ones, by their ids. shown: number of nearest edits whose own attention maps are included.
    Raises `InvalidInputError` for a question without an image, and if `edits` are not the active ones.
    """
    if question.image is None:
        raise InvalidInputError(f"{question.prompt!r} was asked without an image. Give a question with an image.")
    if set(edits) != set(editor.ids):
        raise InvalidInputError(
            f"{len(edits)} edits were given and {len(editor.ids)} others are active. Give the active edits."
        )
    backbone = editor.backbone
    asked = backbone.encode([question], padding="left")
    with editor.paused():
        (unedited,) = backbone.generate(asked, max_new_tokens)
    (answer,) = backbone.generate(asked, max_new_tokens)
    sentinel, found = candidates(editor, question, edits)
    attention = editor.attention_map(question)
    return Attribution(
        prompt=question.prompt,
        unedited_answer=unedited,
        answer=answer,
        sentinel=sentinel,
        attention=attention,
        change=change_map(editor, question, _cells_of(attention)),
        candidates=tuple(
            replace(one, attention=editor.attention_map(edits[one.edit_id].question, "edit")) if place < shown else one
            for place, one in enumerate(found)
        ),
    )


@torch.no_grad()
def candidates(editor: LiveEdit, question: Question, edits: Mapping[str, Edit]) -> tuple[float, list[Candidate]]:
    """The sentinel's similarity, and how each active edit was routed: the largest margin first, then by id."""
    tokens = editor.read(editor.backbone.encode([question], padding="left"))
    modules, repository = editor.modules, editor.repository
    query, reachable = modules.query(tokens), tokens.has_image
    sentinel = modules.visual_score(query.visual, query.sentinel)[0]
    if not len(repository):
        return float(sentinel), []
    passed = hard_routed(query, reachable, repository)
    routing = route(modules, query, reachable, repository, editor.combining)
    weights = {} if routing is None else {fired.edit_id: fired.weight for fired in routing.fired[0]}
    margins = modules.visual_score(query.visual, repository.visual_features) - sentinel
    scores = modules.prompt_score(query.prompt, repository.prompt_features)
    of_all = soft_weights(scores, editor.config.weighting)
    columns = (part.tolist() for part in (margins, passed[0], scores, of_all))
    found = [
        Candidate(
            edit_id=edit_id,
            prompt=edits[edit_id].question.prompt,
            answer=edits[edit_id].answer,
            margin=margin,
            passed=through,
            score=score,
            weight=weights.get(edit_id, 0.0),
            weight_of_all=whole,
        )
        for edit_id, margin, through, score, whole in zip(repository.ids, *columns, strict=True)
    ]
    return float(sentinel), sorted(found, key=lambda one: (-one.margin, one.edit_id))


def _cells_of(attention: HeatMap) -> int:
    """As many cells as the attention map if that is a map of the image, up to a limit."""
    known = len(attention.values) if attention.over == "cells" else _MOST_CELLS
    return min(known, _MOST_CELLS)
