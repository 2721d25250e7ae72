"""Which classes and photographs look alike, by the features of a vision tower or of the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...errors import InvalidInputError
from ...progress import Progress, no_progress
from .looks import thumbnail

Features = Callable[[Sequence[Path]], Any]
"""From the paths of n photographs to their features, an array or a CPU tensor of shape (n, width)."""

_BATCH: Final = 64
_PIXELS_SIDE: Final = 8


def pixel_features(photos: Sequence[Path]) -> np.ndarray:
    """Colours and layout, without a model: photographs reduced to 8 x 8 pixels, (n, 192) of mean 0 and length 1.

    Raises `ImageError` if a photograph cannot be opened.
    """
    rows = np.stack([thumbnail(photo, _PIXELS_SIDE).ravel() for photo in photos])
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def compute_features(
    features: Features, root: Path, photos: Sequence[str], progress: Progress = no_progress
) -> dict[str, np.ndarray]:
    """The features of each photograph, in batches. progress: photographs done, and their total.

    Raises `InvalidInputError` if `features` does not give one row of finite numbers per photograph.
    """
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(photos), _BATCH):
        batch = photos[start : start + _BATCH]
        rows = np.asarray(features([root / photo for photo in batch]), dtype=np.float64)
        if rows.ndim != 2 or len(rows) != len(batch) or not np.isfinite(rows).all():
            raise InvalidInputError(
                f"The features of {len(batch)} photographs have the shape {rows.shape}. Give one row of finite numbers "
                "per photograph."
            )
        found.update(zip(batch, rows, strict=True))
        progress(len(found), len(photos))
    return found


class Nearness:
    """Similarity of photographs, and of classes by the means of their photographs: cosine after centring."""

    def __init__(self, classes: dict[str, tuple[str, ...]], features: dict[str, np.ndarray]):
        """classes: the photographs of each class. features: the vector of each photograph."""
        photos = [photo for found in classes.values() for photo in found]
        rows = np.stack([features[photo] for photo in photos])
        centre = rows.mean(axis=0)
        self._photos = dict(zip(photos, _unit(rows - centre), strict=True))
        self._photos_of = classes
        self.keys = tuple(classes)
        means = np.stack([np.mean([self._photos[photo] for photo in found], axis=0) for found in classes.values()])
        self.similarity = _unit(means) @ _unit(means).T
        """(classes, classes), in the order of `keys`."""

    def nearest_classes(self, key: str, among: Sequence[str]) -> list[str]:
        """Other classes among these, the most similar first."""
        row = dict(zip(self.keys, self.similarity[self.keys.index(key)], strict=True))
        return sorted((other for other in among if other != key), key=lambda other: (-row[other], other))

    def nearest_photo(self, photo: str, key: str) -> str:
        """The photograph of the class `key` that is most similar to this one."""
        shown = self._photos[photo]
        return max(self._photos_of[key], key=lambda other: (float(self._photos[other] @ shown), other))


def unedited_classes(nearness: Nearness, count: int) -> tuple[str, ...]:
    """`count` classes to leave unedited, so that the other ones have a similar unedited class.

    Greedy: each step takes the class with which the similarities of the edited classes to their nearest unedited one
    have the largest sum. Of two classes that are more similar than all others, one is taken early and the other one
    stays edited.
    """
    similarity = np.clip(nearness.similarity, 0, None)
    np.fill_diagonal(similarity, 0)
    chosen: list[int] = []
    while len(chosen) < count:
        best = similarity[chosen].max(axis=0, initial=0)
        # Row: the class to take. Column: a class, with its similarity to the nearest unedited one then.
        then = np.maximum(similarity, best)
        then[:, chosen] = 0
        np.fill_diagonal(then, 0)
        then[chosen] = -1
        chosen.append(int(then.sum(axis=1).argmax()))
    return tuple(sorted(nearness.keys[place] for place in chosen))


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
