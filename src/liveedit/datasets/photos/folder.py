"""A folder of class folders with photographs, and their division into four parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from ...errors import InvalidInputError

PhotoPart = Literal["pretraining", "editors", "validation", "evaluation"]
"""What photographs are for: to teach a model, to train editors, to choose their thresholds, to measure edits."""

PARTS: Final = get_args(PhotoPart)

SUFFIXES: Final = (".jpg", ".jpeg", ".png")
FEWEST_PHOTOS: Final = 7
"""Photographs that a class needs: one for pretraining, and two each, an edit's and another, for the other parts."""
FEWEST_CLASSES: Final = 2

_EVALUATION_SHARE: Final = 1 / 6
_VALIDATION_SHARE: Final = 1 / 12
_EDITORS_SHARE: Final = 1 / 6


@dataclass(frozen=True, slots=True)
class ClassPhotos:
    """The photographs of a class in disjoint parts, as sorted paths relative to the image folder ("ant/1.jpg").

    key: the name of the class folder.
    """

    key: str
    pretraining: tuple[str, ...]
    editors: tuple[str, ...]
    validation: tuple[str, ...]
    evaluation: tuple[str, ...]

    def part(self, part: PhotoPart) -> tuple[str, ...]:
        """The photographs of one part."""
        photos: tuple[str, ...] = getattr(self, part)
        return photos


@dataclass(frozen=True, slots=True)
class PhotoFolder:
    """A folder of photographs.

    classes: sorted by key. left_out: class folders with fewer than `FEWEST_PHOTOS` photographs, and how many they have.
    copies: photographs that equal an earlier one byte for byte; they are in no part, so that no photograph is in two.
    """

    path: Path
    classes: tuple[ClassPhotos, ...]
    left_out: dict[str, int]
    copies: tuple[str, ...]


def read_folder(path: Path) -> PhotoFolder:
    """The photographs (jpg, jpeg, png) of a folder of class folders.

    A class is divided by a digest of the names of its files, so that the order in which photographs were collected does
    not matter: of 24, 14 are for pretraining, 4 for editors, 2 for validation and 4 for evaluation. Raises
    `InvalidInputError` if the folder does not exist or has fewer than two classes with enough photographs, and for
    names that are not text.
    """
    if not path.is_dir():
        raise InvalidInputError(f"The image folder {str(path)!r} does not exist. Give a folder of class folders.")
    seen: set[bytes] = set()
    copies: list[str] = []
    classes: list[ClassPhotos] = []
    left_out: dict[str, int] = {}
    for folder in sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")):
        photos = [photo for photo in _photos(folder) if not _is_copy(path / photo, photo, seen, copies)]
        if len(photos) < FEWEST_PHOTOS:
            left_out[folder.name] = len(photos)
        else:
            classes.append(_divided(folder.name, photos))
    if len(classes) < FEWEST_CLASSES:
        raise InvalidInputError(_too_few(path, len(classes), left_out))
    return PhotoFolder(path, tuple(classes), left_out, tuple(copies))


def _photos(folder: Path) -> list[str]:
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    photos = sorted(f"{folder.name}/{file.name}" for file in files if file.is_file())
    for photo in photos:
        if not photo.isprintable():  # Bytes that are not UTF-8 are half characters here, which no JSON file can hold.
            raise InvalidInputError(f"The file name {photo!r} is not readable text. Rename the file or its folder.")
    return photos


def _is_copy(file: Path, photo: str, seen: set[bytes], copies: list[str]) -> bool:
    digest = hashlib.sha256(file.read_bytes()).digest()
    if digest in seen:
        copies.append(photo)
        return True
    seen.add(digest)
    return False


def _divided(key: str, photos: Sequence[str]) -> ClassPhotos:
    mixed = sorted(photos, key=lambda photo: hashlib.sha256(photo.encode()).digest())
    evaluation = max(2, round(_EVALUATION_SHARE * len(photos)))
    validation = evaluation + max(2, round(_VALIDATION_SHARE * len(photos)))
    editors = validation + max(2, round(_EDITORS_SHARE * len(photos)))
    parts = mixed[editors:], mixed[validation:editors], mixed[evaluation:validation], mixed[:evaluation]
    return ClassPhotos(key, *(tuple(sorted(part)) for part in parts))


def _too_few(path: Path, classes: int, left_out: dict[str, int]) -> str:
    short = ", ".join(f"{key} ({count})" for key, count in list(left_out.items())[:5])
    return (
        f"The image folder {str(path)!r} has {classes} class folders with {FEWEST_PHOTOS} photographs or more"
        + (f", and others with fewer: {short}" if short else "")
        + f". Give a folder with at least {FEWEST_CLASSES} folders, one per class, of jpg, jpeg or png files."
    )
