"""Experts that are sure to fire for chosen questions, even with an untrained editor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..editors.liveedit import LiveEdit
from ..editors.liveedit.modules import QueryFeatures
from ..experts import LowRankExpert
from ..samples import Question


def features_of(editor: LiveEdit, question: Question) -> QueryFeatures:
    """The routing features of one question, read while the edits are paused."""
    with torch.no_grad():
        return editor.modules.query(editor.read(editor.backbone.encode([question])))


def forced_expert(
    editor: LiveEdit,
    question: Question,
    against: Sequence[Question] = (),
    seed: int = 0,
    strength: float = 3.0,
) -> LowRankExpert:
    """A random U and V that both routers pass for `question`, and the hard router for none of `against`."""
    query = features_of(editor, question)
    rows = torch.stack([query.visual[0], *(features_of(editor, other).visual[0] for other in against)])
    wanted = torch.tensor([1.0, *(-1.0 for _ in against)])
    visual = torch.linalg.pinv(rows.double()) @ wanted.double()
    prompt = query.prompt[0]
    generator = torch.Generator().manual_seed(seed)
    width, rank = editor.config.width, editor.config.rank
    u, v = (torch.randn(rank, width, generator=generator) for _ in range(2))
    return LowRankExpert(u, strength * v, 1e4 * visual.float(), 100 * prompt / prompt.norm() ** 2)


def fired_ids(editor: LiveEdit) -> list[list[str]]:
    """The ids that fired for each row of the last batch."""
    return [[fired.edit_id for fired in row] for row in editor.fired() or []]
