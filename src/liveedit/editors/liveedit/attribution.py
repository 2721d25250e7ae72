"""What LiveEdit looked at: where in the image a question's visual feature comes from, and how every edit fared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, TokenBatch
from ...errors import InvalidInputError
from ...images import open_image
from ...samples import Edit, Question
from .editor import LiveEdit
from .modules import FeatureExtractor, left_pack
from .routing import hard_routed, route, soft_weights

_MOST_CELLS = 8
"""Rows and columns of a map of changes at most: each of its cells is an image to run."""

_AT_ONCE = 17
"""Images in a batch: one with nothing covered, and 4 x 4 covered ones."""


@dataclass(frozen=True)
class HeatMap:
    """A map over an image.

    values: rows from top to bottom, which cut the image into equal cells; over "tokens" there is one row, and its
    cells are image tokens that stand for no place. kind: "attention" is a share, all of them together 1; "change" is
    1 - cos(phi, phi with this cell covered by the image's mean colour).
    """

    kind: Literal["attention", "change"]
    over: Literal["cells", "tokens"]
    values: tuple[tuple[float, ...], ...]
    note: str


@dataclass(frozen=True)
class Candidate:
    """One edit in force, as a question met it; similarities are in the editor's own units.

    margin: visual similarity less the sentinel's. score: similarity s of the prompts. passed: by hard routing. weight:
    its share in the answer, 0 where it was filtered or was not among `top_experts`. weight_of_all: the weight had hard
    routing let every edit pass. attention: what it looked at when it was made, where that was asked for.
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
class LookedAt:
    """A question against the edits in force. candidates: all of them, the largest margin first."""

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


def look(
    editor: LiveEdit, question: Question, edits: Mapping[str, Edit], shown: int = 3, max_new_tokens: int = 16
) -> LookedAt:
    """Ask a question with an image, and tell what routing saw (figures 6 and 7 of the paper).

    edits: those in force, by their ids. shown: for so many of the nearest edits, what they looked at is told as well.
    Raises `InvalidInputError` for a question without an image, and where `edits` are not those in force.
    """
    if question.image is None:
        raise InvalidInputError(f"{question.prompt!r} was asked without an image: there is nothing to look at.")
    if set(edits) != set(editor.repository.ids):
        raise InvalidInputError(
            f"{len(edits)} edits were given and {len(editor.repository)} others are in force. Give those in force."
        )
    backbone = editor.backbone
    asked = backbone.encode([question], padding="left")
    with editor.paused():
        (unedited,) = backbone.generate(asked, max_new_tokens)
    (answer,) = backbone.generate(asked, max_new_tokens)
    sentinel, candidates = met(editor, question, edits)
    attention = attention_map(editor, question)
    return LookedAt(
        prompt=question.prompt,
        unedited_answer=unedited,
        answer=answer,
        sentinel=sentinel,
        attention=attention,
        change=change_map(editor, question, _cells_of(attention)),
        candidates=tuple(
            replace(one, attention=attention_map(editor, edits[one.edit_id].question, "hat")) if place < shown else one
            for place, one in enumerate(candidates)
        ),
    )


@torch.no_grad()
def met(editor: LiveEdit, question: Question, edits: Mapping[str, Edit]) -> tuple[float, list[Candidate]]:
    """The sentinel's similarity, and how each edit in force fared: by margin, the largest first, then by id."""
    tokens = editor.read(editor.backbone.encode([question], padding="left"))
    modules, repository = editor.modules, editor.repository
    query, reachable = modules.query(tokens), tokens.has_image
    sentinel = modules.visual_score(query.visual, query.sentinel)[0]
    if not len(repository):
        return float(sentinel), []
    passed = hard_routed(query, reachable, repository)
    routing = route(modules, query, reachable, repository)
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


# -- attention -------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_map(editor: LiveEdit, question: Question, side: Literal["hat", "bar"] = "bar") -> HeatMap:
    """Where phi comes from: the attention of CA_phi2 over the image's tokens at the edit layer.

    softmax(x Wq (y Wk)^T) of equation 2, averaged over heads and feature vectors, with x what the prompt asks for and
    y the states of the image tokens; `side` is the query's extractor ("bar") or that of edits ("hat"). Where each
    token is a patch, that is a map of the image. The tokens of a Q-Former are its queries: their shares are handed on
    to the patches by its cross-attention, averaged over its layers and heads, and the share of the class token, which
    stands for no place, is left out. Where neither is known, the map is over tokens. The states have seen more than
    their own patch (vision tower and earlier layers mix them), so a share says where the extractor read, not all that
    went into what it read there: `change_map` is the other half.
    """
    extractor: FeatureExtractor = getattr(editor.modules, side)
    inputs = editor.backbone.encode([question], padding="left")
    with _cross_attention(editor.backbone) as seen:
        tokens = editor.read(inputs)
    asked = extractor.asked(left_pack(tokens.hidden_states, tokens.prompt_mask))
    shares = extractor.attribution(asked, left_pack(tokens.hidden_states, tokens.image_mask))[0].cpu()
    if seen:
        return _through_queries(shares, torch.stack(seen).mean(0))
    side_length = math.isqrt(len(shares))
    if side_length**2 == len(shares) and _one_square_image(inputs):
        return HeatMap("attention", "cells", _rows(shares.view(side_length, -1)), "attention over the patches")
    return HeatMap("attention", "tokens", _rows(shares[None]), "attention over image tokens, which are no places")


def _one_square_image(inputs: TokenBatch) -> bool:
    """Whether the model saw the image as one square: not in tiles, and not as a list of patches."""
    pixels = inputs.pixel_values
    return pixels is not None and pixels.ndim == 4 and len(pixels) == 1 and pixels.shape[-1] == pixels.shape[-2]


def _through_queries(shares: Tensor, cross: Tensor) -> HeatMap:
    """shares: (queries,); cross: (queries, what they read), each row summing to 1."""
    patches = shares @ cross
    count = len(patches)
    if math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1:
        patches = patches[1:]
    side = math.isqrt(len(patches))
    if side**2 != len(patches):
        return HeatMap("attention", "tokens", _rows(shares[None]), "attention over the Q-Former's queries")
    note = "attention over the Q-Former's queries, handed on to the patches by its cross-attention"
    return HeatMap("attention", "cells", _rows((patches / patches.sum()).view(side, side)), note)


@contextmanager
def _cross_attention(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Collects what a Q-Former's queries read of the image inside, layer by layer, (queries, patches) each.

    Nothing is collected for models without one. Attention is computed in the plain way meanwhile: other ways do not
    give its weights.
    """
    found: list[Tensor] = []
    qformer: Any = getattr(backbone.model, "qformer", None)
    if qformer is None:
        yield found
        return

    def ask(
        module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, {**keywords, "output_attentions": True}

    def keep(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        layers = getattr(output, "cross_attentions", None) or ()
        found.extend(weights[0].float().mean(0).cpu() for weights in layers if weights is not None)

    before = qformer.config._attn_implementation
    handles = [qformer.register_forward_pre_hook(ask, with_kwargs=True), qformer.register_forward_hook(keep)]
    qformer.config._attn_implementation = "eager"
    try:
        yield found
    finally:
        qformer.config._attn_implementation = before
        for handle in handles:
            handle.remove()


# -- change ----------------------------------------------------------------------------------------------


@torch.no_grad()
def change_map(editor: LiveEdit, question: Question, cells: int = 4) -> HeatMap:
    """How much phi changes when a cell of the image is covered: 1 - cos(phi, phi'), cell by cell.

    The paper's figures show an attribution by perturbation; this is the plainest one, and works for every family. A
    cell is covered by the image's mean colour. cells: how many rows and columns; each cell is an image to run.
    """
    assert question.image is not None
    image = open_image(question.image)
    asked = [question, *(replace(question, image=each) for each in _covered(image, cells))]
    batches = [asked[start : start + _AT_ONCE] for start in range(0, len(asked), _AT_ONCE)]
    encoded = (editor.backbone.encode(batch, padding="left") for batch in batches)
    phi = torch.cat([editor.modules.query(editor.read(inputs)).visual for inputs in encoded])
    changes = (1 - F.cosine_similarity(phi[:1], phi[1:], dim=1)).clamp(min=0)
    note = "change of the visual feature when the cell is covered"
    return HeatMap("change", "cells", _rows(changes.view(cells, cells)), note)


def _covered(image: Image.Image, cells: int) -> Iterator[Image.Image]:
    pixels = np.asarray(image)
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, size, cells + 1).round().astype(int) for size in pixels.shape[:2])
    for row in range(cells):
        for column in range(cells):
            changed = pixels.copy()
            changed[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean
            yield Image.fromarray(changed)


def _cells_of(attention: HeatMap) -> int:
    """As fine as the map of attention, where it is one of the image, and not too fine to compute."""
    known = len(attention.values) if attention.over == "cells" else _MOST_CELLS
    return min(known, _MOST_CELLS)


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
