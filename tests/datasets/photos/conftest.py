"""Folders of drawn photographs, and a benchmark of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_photos import FolderMaker, draw_classes, draw_photo

from liveedit.datasets.photos import WrittenPhotos, pixel_features, write_photos

TRAIN, VALIDATION, EVAL = 300, 30, 90


@pytest.fixture
def make_folder(tmp_path: Path) -> FolderMaker:
    """Makes a folder of class folders, given how many photographs each class has."""

    def make(**counts: int) -> Path:
        for place, (key, count) in enumerate(counts.items()):
            for index in range(count):
                draw_photo(tmp_path / "images" / key / f"{index:03d}.png", (40 * place, 90, 120), 100 * place + index)
        return tmp_path / "images"

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of sixteen photographs."""
    return draw_classes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def written(images: Path, tmp_path_factory: pytest.TempPathFactory) -> WrittenPhotos:
    """A benchmark of `images` with 300 cases to train on, 30 for validation and 90 to measure on."""
    out = tmp_path_factory.mktemp("photos")
    return write_photos(images, out, 3, TRAIN, EVAL, pixel_features, validation=VALIDATION)
