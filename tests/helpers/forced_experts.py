"""An editor whose experts fire for every image, and the forced experts of `liveedit.editors.reference`."""

from __future__ import annotations

from liveedit.editors.liveedit import LiveEditRefine
from liveedit.editors.reference import features_of, fired_ids, forced_expert
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit

__all__ = ["AlwaysFires", "features_of", "fired_ids", "forced_expert"]


class AlwaysFires(LiveEditRefine):
    """An untrained editor whose experts pass both routers for every picture."""

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """A refined expert with features that any picture passes."""
        expert, steps = super().make_expert(edit)
        query = features_of(self, edit.question)
        return LowRankExpert(expert.u, expert.v, 1e4 * query.visual[0], 100 * query.prompt[0], query.visual[0]), steps
