"""The edits that a retrieving editor remembers, each with the vector by which it is found."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError, NotFoundError
from ...images import open_image
from ...samples import Edit, Question

_AS_NEAR = 1e-5
"""Cosines that differ by less are equal: products of equal rows may differ in their last bits."""


class FeatureMemory:
    """Feature rows by edit id, in the order in which they came.

    Of edits that are equally near to a query the latest is found, so that asking for another answer to the same
    question is a change of mind; taking the latest back brings the earlier one back.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._rows: dict[str, Tensor] = {}
        self._stacked: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self._rows

    @property
    def ids(self) -> tuple[str, ...]:
        """Edit ids, row by row."""
        return tuple(self._rows)

    @property
    def features(self) -> Tensor:
        """(edits, features) float32. Raises `NotFoundError` where there is no edit."""
        if not self._rows:
            raise NotFoundError("There is no edit to be found. Make one first.")
        if self._stacked is None:
            self._stacked = torch.stack(list(self._rows.values()))
        return self._stacked

    def add_feature(self, edit_id: str, feature: Tensor) -> None:
        """Remember a feature row, (features,). Raises `InvalidInputError` for a known id."""
        if edit_id in self._rows:
            raise InvalidInputError(f"The edit {edit_id!r} is already there. Undo it first or use another id.")
        self._rows[edit_id] = feature.detach().float().to(self.device)
        self._stacked = None

    def remove(self, edit_id: str) -> None:
        """Forget one edit. Raises `NotFoundError` for an unknown id."""
        if edit_id not in self._rows:
            raise NotFoundError(f"There is no edit {edit_id!r}. There are {len(self)} edits.")
        del self._rows[edit_id]
        self._stacked = None

    def clear(self) -> None:
        """Forget every edit."""
        self._rows.clear()
        self._stacked = None

    def nearest(self, queries: Tensor) -> tuple[list[str], Tensor]:
        """The id of the nearest edit of each query, (queries, features), and its dot product with it, (queries,).

        With features of unit length, as a `QuestionEncoder` gives them, that is the cosine. Raises `NotFoundError`
        where there is no edit.
        """
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 products would blur similarities.
            places, best = latest_of_nearest(queries.float().to(self.device) @ self.features.T)
        ids = self.ids
        return [ids[place] for place in places], best


def latest_of_nearest(similarity: Tensor) -> tuple[list[int], Tensor]:
    """Per query of (queries, edits) the place of the nearest edit, the last of equals, and how near it is."""
    best = similarity.amax(1, keepdim=True)
    places = torch.arange(similarity.shape[1], device=similarity.device)
    latest = torch.where(similarity >= best - _AS_NEAR, places, -1).amax(1)
    return latest.tolist(), best[:, 0]


class EditMemory(FeatureMemory):
    """A `FeatureMemory` that keeps the edits themselves as well."""

    def __init__(self, device: torch.device | str = "cpu"):
        super().__init__(device)
        self._edits: dict[str, Edit] = {}

    def __getitem__(self, edit_id: str) -> Edit:
        try:
            return self._edits[edit_id]
        except KeyError:
            raise NotFoundError(f"There is no edit {edit_id!r}. There are {len(self)} edits.") from None

    def add(self, edit_id: str, edit: Edit, feature: Tensor) -> None:
        """Remember an edit with its feature row, (features,). Raises `InvalidInputError` for a known id."""
        self.add_feature(edit_id, feature)
        self._edits[edit_id] = edit

    def remove(self, edit_id: str) -> None:
        """Forget one edit. Raises `NotFoundError` for an unknown id."""
        super().remove(edit_id)
        del self._edits[edit_id]

    def clear(self) -> None:
        """Forget every edit."""
        super().clear()
        self._edits.clear()

    # -- keeping -----------------------------------------------------------------------------------------

    def state(self, images: bool = True) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Features and images (PNG bytes as integers) as tensors, and the texts of each edit for JSON.

        Without `images` an edit comes back without its own, for editors that never look at it again.
        """
        tensors = {"features": self.features} if len(self) else {}
        notes: list[dict[str, Any]] = []
        for place, (edit_id, edit) in enumerate(self._edits.items()):
            question = edit.question
            if images and question.image is not None:
                tensors[f"image.{place}"] = _png(question)
            subject, relation = question.scope
            texts = {"prompt": question.prompt, "subject": subject, "relation": relation, "answer": edit.answer}
            notes.append({"id": edit_id, **texts})
        return tensors, notes

    def restore(self, tensors: dict[str, Tensor], notes: list[dict[str, Any]]) -> None:
        """Put what `state` gave in place of the edits that are there."""
        self.clear()
        for place, note in enumerate(notes):
            png = tensors.get(f"image.{place}")
            image = None if png is None else png.cpu().numpy().tobytes()
            question = Question(note["prompt"], image, note["subject"], note["relation"])
            self.add(note["id"], Edit(question, note["answer"]), tensors["features"][place])


def _png(question: Question) -> Tensor:
    """The image as an editor sees it: upright RGB, nothing lost."""
    stream = io.BytesIO()
    assert question.image is not None
    open_image(question.image).save(stream, format="PNG")
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
