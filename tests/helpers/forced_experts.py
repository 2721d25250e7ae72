"""Experts that are sure to fire for chosen questions, whatever an untrained editor would do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from liveedit.editors.liveedit import LiveEdit, LiveEditRefine
from liveedit.editors.liveedit.modules import QueryFeatures
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, Question


class AlwaysFires(LiveEditRefine):
    """An untrained editor whose experts pass both routers for every picture."""

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """A refined expert with features that any picture passes."""
        expert, steps = super().make_expert(edit)
        query = features_of(self, edit.question)
        return LowRankExpert(expert.u, expert.v, 1e4 * query.visual[0], 100 * query.prompt[0]), steps


def features_of(editor: LiveEdit, question: Question) -> QueryFeatures:
    with torch.no_grad():
        return editor.modules.query(editor.read(editor.backbone.encode([question])))


def forced_expert(
    editor: LiveEdit,
    question: Question,
    against: Sequence[Question] = (),
    seed: int = 0,
    strength: float = 3.0,
) -> LowRankExpert:
    """A random U and V that both routers pass for `question`, and the hard one for none of `against`.

    Where `editor` is attached its edits do not take part.
    """
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
    return [[fired.edit_id for fired in row] for row in editor.fired() or []]
