"""The paper's analyses: routing consistency, and the similarity of edits within and between batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...editors.lemoe.editor import Lemoe
from ...errors import InvalidInputError
from ...samples import Edit


def consistency_matrix(editor: Lemoe, edits: Sequence[tuple[str, Edit]]) -> Tensor:
    """C, (experts, experts): C_ij is the share of the edits processed by expert i in training that are routed to j now.

    A row sums to less than 1 if some questions reach no expert, and is nan if an expert processed none of
    these edits (figure 2, right). Raises `InvalidInputError` for edits that are not active.
    """
    processed = editor.trained_by()
    unknown = [edit_id for edit_id, _ in edits if edit_id not in processed]
    if unknown:
        raise InvalidInputError(f"The edits {', '.join(unknown[:3])} are not active. Give active edits.")
    counts = torch.zeros(len(editor.experts), len(editor.experts))
    for (edit_id, _), expert in zip(edits, editor.route_of([edit.question for _, edit in edits]), strict=True):
        if expert >= 0:
            counts[processed[edit_id], expert] += 1
    held = torch.bincount(
        torch.tensor([processed[edit_id] for edit_id, _ in edits], dtype=torch.long), minlength=len(counts)
    )
    return counts / held[:, None]


def diagonal_mass(matrix: Tensor) -> float:
    """Mean of C_ii over the experts that processed anything; 1 is full consistency."""
    return float(matrix.diagonal().nanmean())


def within_between_similarity(embeddings: Tensor, batches: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Mean cosine of two edits of one batch, and of two edits of different batches (figure 3, right).

    embeddings: (edits, width); batches: numbers of edits. nan if there is no such pair.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    cosines = unit @ unit.T
    number = torch.full((len(unit),), -1)
    for index, batch in enumerate(batches):
        number[list(batch)] = index
    planned = number >= 0
    pairs = planned[:, None] & planned[None] & ~torch.eye(len(unit), dtype=torch.bool)
    same = number[:, None] == number[None]
    return float(cosines[pairs & same].mean()), float(cosines[pairs & ~same].mean())
