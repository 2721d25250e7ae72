"""The editor with which the doctor and the contract of an edited backbone check a model.

What they check is the model: a small untrained editor is attached, and experts are forced to fire.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backbones import Backbone
from ..experts import LowRankExpert
from ..samples import Question
from .liveedit import LiveEdit
from .shared.routing import QueryFeatures

ReferenceEditor = LiveEdit


def small_editor(backbone: Backbone, **settings: object) -> ReferenceEditor:
    """An untrained editor with small modules; settings: changes to its configuration."""
    small = {"module_width": 32, "heads": 1, "rank": 2, "feature_parts": 1}
    return LiveEdit.untrained(backbone, LiveEdit.new_config(backbone, **{**small, **settings}))


def features_of(editor: ReferenceEditor, question: Question) -> QueryFeatures:
    """The routing features of one question, read while the edits are paused."""
    with torch.no_grad():
        return editor.modules.query(editor.read(editor.backbone.encode([question])))


def forced_expert(
    editor: ReferenceEditor,
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
    return LowRankExpert(u, strength * v, 1e4 * visual.float(), 100 * prompt / prompt.norm() ** 2, query.visual[0])


def fired_ids(editor: ReferenceEditor) -> list[list[str]]:
    """The ids that fired for each row of the last batch."""
    return [[fired.edit_id for fired in row] for row in editor.fired() or []]
