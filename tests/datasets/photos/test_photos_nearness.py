"""Which classes and photographs count as near, and which classes stay unedited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import COLORS

from liveedit.datasets.photos.nearness import Nearness, compute_features, pixel_features, unedited_classes
from liveedit.errors import ImageError, InvalidInputError


def nearness_of(vectors: dict[str, list[float]]) -> Nearness:
    """Each class with one photograph of the same name."""
    return Nearness({key: (key,) for key in vectors}, {key: np.array(value) for key, value in vectors.items()})


PAIRS = nearness_of(
    {"a": [9, 1, 0], "b": [9, -1, 0], "c": [-9, 0, 4], "d": [-9, 0, -4], "e": [0, -9, 1], "f": [0, 9, -1]}
)


def test_near_classes_are_ordered_by_the_angle_around_the_mean() -> None:
    """The mean of these vectors is zero, so that the cosines can be worked out by hand."""
    found = nearness_of({"a": [1, 0], "b": [0.6, 0.8], "c": [-1, 0], "d": [-0.6, -0.8]})
    assert found.similarity[0] == pytest.approx([1, 0.6, -1, -0.6])
    assert found.nearest_classes("a", "abcd") == ["b", "d", "c"]
    assert found.nearest_classes("a", "cd") == ["d", "c"]


def slow_greedy(similarity: np.ndarray, count: int) -> set[int]:
    """The greedy choice, written with plain loops."""
    chosen: set[int] = set()
    classes = range(len(similarity))
    while len(chosen) < count:
        sums = {}
        for candidate in sorted(set(classes) - chosen):
            unedited = chosen | {candidate}
            edited = set(classes) - unedited
            sums[candidate] = sum(max(0.0, *(similarity[one, two] for two in unedited)) for one in edited)
        chosen.add(max(sums, key=lambda candidate: (round(sums[candidate], 9), -candidate)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_unedited_classes_are_those_of_a_slow_greedy_choice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = nearness_of({f"{place:02d}": list(rng.normal(size=4)) for place in range(14)})
    expected = {f"{place:02d}" for place in slow_greedy(found.similarity, 5)}
    assert set(unedited_classes(found, 5)) == expected


def test_of_each_pair_of_near_classes_one_stays_unedited() -> None:
    found = unedited_classes(PAIRS, 2)
    assert len(found) == 2
    assert len({"a", "b"} & set(found)) == 1 and len({"c", "d"} & set(found)) == 1


def test_pixels_of_classes_that_look_alike_are_near(images: Path) -> None:
    photos = {key: tuple(f"{key}/image_{index:04d}.png" for index in range(4)) for key in COLORS}
    every = [photo for found in photos.values() for photo in found]
    found = Nearness(photos, compute_features(pixel_features, images, every))
    assert found.nearest_classes("wild_cat", tuple(COLORS))[0] == "Leopards"
    assert found.nearest_classes("crocodile_head", tuple(COLORS))[0] == "crocodile"


def test_the_nearest_photograph_is_the_most_similar_one() -> None:
    vectors = {"a1": [1.0, 0], "b1": [0.8, 0.6], "b2": [0.9, -0.1], "b3": [-1.0, 0]}
    found = Nearness({"a": ("a1",), "b": ("b1", "b2", "b3")}, {key: np.array(value) for key, value in vectors.items()})
    assert found.nearest_photo("a1", "b") == "b2"


def test_pixel_features_are_rows_of_length_one(images: Path) -> None:
    rows = pixel_features([images / "ant" / "image_0000.png", images / "pizza" / "image_0000.png"])
    assert rows.shape == (2, 192)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    assert rows.mean(axis=1) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ImageError, match="does not exist"):
        pixel_features([images / "absent.png"])


def test_features_are_computed_in_batches_with_progress() -> None:
    asked: list[int] = []
    reported: list[tuple[int, int]] = []

    def features(paths: Sequence[Path]) -> np.ndarray:
        asked.append(len(paths))
        return np.array([[float(path.name)] for path in paths])

    photos = [str(number) for number in range(150)]
    found = compute_features(features, Path("/images"), photos, lambda done, total: reported.append((done, total)))
    assert {photo: float(row[0]) for photo, row in found.items()} == {photo: float(photo) for photo in photos}
    assert max(asked) <= 64 and sum(asked) == 150
    assert reported[-1] == (150, 150) and len(reported) == len(asked)


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.zeros(2), np.full((2, 3), np.nan)])
def test_other_features_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="one row of finite numbers per photograph"):
        compute_features(lambda paths: rows, Path(), ["a", "b"])
