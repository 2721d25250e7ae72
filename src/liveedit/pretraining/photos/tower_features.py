"""What a vision tower sees in the photographs of a folder, in several views of each, computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ...backbones.efficientnet_lite import EfficientNetLiteModel, image_processor
from ...datasets.photos.folder import PhotoFolder, PhotoPart
from ...datasets.photos.nearness import Nearness
from ...errors import CheckpointError
from ...images import open_image
from ...progress import TaskProgress
from ...training.checkpoints import load_tensors, save_tensors

_BATCH: Final = 32
_SMALLEST_CROP: Final = 0.7


@dataclass(frozen=True)
class TowerFeatures:
    """Photographs of one part. places: for each, its class as an index into the folder's classes, and its path.

    features: (views, photographs, image tokens, width) in half precision; view 0 is the photograph as it is.
    """

    folder: PhotoFolder
    places: tuple[tuple[int, str], ...]
    features: Float[Tensor, "views photographs tokens width"]

    def of_class(self, number: int) -> list[int]:
        """Indices of the photographs of a class."""
        return [index for index, (found, _) in enumerate(self.places) if found == number]

    def nearest(self, count: int) -> list[list[int]]:
        """For each class the `count` classes with the most similar photographs, as indices."""
        keys = [found.key for found in self.folder.classes]
        photos = {key: tuple(self.places[place][1] for place in self.of_class(n)) for n, key in enumerate(keys)}
        means = self.features[0].float().mean(1).numpy()
        nearness = Nearness(photos, {photo: mean for (_, photo), mean in zip(self.places, means, strict=True)})
        return [[keys.index(other) for other in nearness.nearest_classes(key, keys)[:count]] for key in keys]


def compute_tower_features(
    folder: PhotoFolder,
    tower: EfficientNetLiteModel,
    out: Path,
    report: TaskProgress,
    part: PhotoPart = "pretraining",
    views: int = 1,
    seed: int = 0,
) -> TowerFeatures:
    """Run all photographs of a part through the tower, view by view; finished views in `out` are kept.

    Raises `CheckpointError` if a kept view is of other photographs.
    """
    places = tuple((number, photo) for number, found in enumerate(folder.classes) for photo in found.part(part))
    photos = [photo for _, photo in places]
    found = []
    for view in range(views):
        file = out / f"{part}-{view}.safetensors"
        if not file.exists():
            features = _features(folder.path, photos, tower, view, seed, report)
            save_tensors(file, {"features": features}, {"photos": photos, "seed": seed})
        tensors, note = load_tensors(file)
        if note.get("photos") != photos or note.get("seed") != seed:
            raise CheckpointError(
                f"{file} holds other photographs than those of {folder.path}. Remove it or give another folder."
            )
        found.append(tensors["features"])
    return TowerFeatures(folder, places, torch.stack(found))


@torch.no_grad()
def _features(
    path: Path, photos: Sequence[str], tower: EfficientNetLiteModel, view: int, seed: int, report: TaskProgress
) -> Tensor:
    processor, found = image_processor(tower.config), []
    for start in range(0, len(photos), _BATCH):
        images = [
            view_of(open_image(path / photo), view, np.random.default_rng([seed, view, start + place]))
            for place, photo in enumerate(photos[start : start + _BATCH])
        ]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        found.append(tower(pixels).last_hidden_state.half())
        report(f"view {view}", min(start + _BATCH, len(photos)), len(photos))
    return torch.cat(found)


def view_of(image: Image.Image, view: int, rng: np.random.Generator) -> Image.Image:
    """View 0 is the image; the others are random crops of it, every second one mirrored."""
    if view == 0:
        return image
    share = rng.uniform(_SMALLEST_CROP, 1.0)
    width, height = (round(share * side) for side in image.size)
    left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, (width, height), strict=True))
    cropped = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cropped) if view % 2 else cropped
