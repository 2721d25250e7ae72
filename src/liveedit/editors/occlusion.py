"""Occlusion: how much an editor's finding changes if a cell of the image is covered. Works for every expert editor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..errors import InvalidInputError
from ..images import open_image
from ..samples import Question
from .base import ExpertEditor
from .heat_map import HeatMap, rows_of

_IMAGES_AT_ONCE: Final = 17
"""Images in a batch: the uncovered one and the 4 x 4 covered ones of the default."""


@torch.no_grad()
def change_map(editor: ExpertEditor[Any], question: Question, cells: int = 4) -> HeatMap:
    """Change of `editor.occlusion_features` if a cell of the image is covered: 1 - cos(f, f'), cell by cell.

    The paper's figures show an attribution by perturbation; this is the simplest one. A cell is covered by the image's
    mean colour. cells: number of rows and of columns; each cell is one image to run. Raises `InvalidInputError` for a
    question without an image.
    """
    if question.image is None:
        raise InvalidInputError(f"{question.prompt!r} was asked without an image. Give a question with an image.")
    image = open_image(question.image)
    asked = [question, *(replace(question, image=each) for each in _covered(image, cells))]
    batches = [asked[start : start + _IMAGES_AT_ONCE] for start in range(0, len(asked), _IMAGES_AT_ONCE)]
    features = torch.cat([editor.occlusion_features(batch) for batch in batches])
    changes = (1 - F.cosine_similarity(features[:1], features[1:], dim=1)).clamp(min=0)
    note = f"change of the {editor.occlusion_feature} when the cell is covered"
    return HeatMap("change", "cells", rows_of(changes.view(cells, cells)), note)


def _covered(image: Image.Image, cells: int) -> Iterator[Image.Image]:
    """The image with one cell covered, row by row."""
    pixels = np.asarray(image)
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    rows, columns = (np.linspace(0, size, cells + 1).round().astype(int) for size in pixels.shape[:2])
    for row in range(cells):
        for column in range(cells):
            changed = pixels.copy()
            changed[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean
            yield Image.fromarray(changed)
