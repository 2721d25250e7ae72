"""The images that a built-in backbone is pretrained on, drawn once and kept in a memory-mapped file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..datasets.world import catalog, drawing, scene
from ..datasets.world.scene import Scene
from ..files import write_text
from ..progress import Progress, no_progress

KNOWN_SHARE = 0.6
"""Share of the images that show a creature of the catalogue; the others show random creatures."""
STRENGTH = 1.35
"""Factor on the poses of the world, so that the world's poses are well within the trained range."""
_CHUNK = 500


class ImagePool:
    """`count` scenes with their pixels; scene and pixels depend on seed and index only."""

    def __init__(self, folder: Path, count: int, seed: int, progress: Progress = no_progress):
        self.count, self.seed = count, seed
        self._file, self._meta = folder / "images.npy", folder / "images.json"
        if not self._complete():
            self._draw(folder, progress)
        self.pixels = np.load(self._file, mmap_mode="r")
        self.scenes = tuple(scene_of(index, seed) for index in range(count))

    def normalized(self, indices: Sequence[int]) -> Tensor:
        """Pixels of these images as the image processor gives them, (batch, 3, 64, 64)."""
        pixels = torch.from_numpy(np.array(self.pixels[indices])).permute(0, 3, 1, 2).float()
        return (pixels / 255 - 0.5) / 0.25

    def _complete(self) -> bool:
        return self._meta.exists() and json.loads(self._meta.read_text()) == self._identity

    @property
    def _identity(self) -> dict[str, float]:
        return {"count": self.count, "seed": self.seed, "strength": STRENGTH, "known_share": KNOWN_SHARE}

    def _draw(self, folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shape = (self.count, drawing.SIZE, drawing.SIZE, 3)
        pixels = np.lib.format.open_memmap(self._file, "w+", np.uint8, shape)
        starts = range(0, self.count, _CHUNK)
        with ProcessPoolExecutor() as pool:
            ends = [min(start + _CHUNK, self.count) for start in starts]
            for start, chunk in zip(starts, pool.map(_draw_chunk, starts, ends, [self.seed] * len(ends)), strict=True):
                pixels[start : start + len(chunk)] = chunk
                progress(start + len(chunk), self.count)
        pixels.flush()
        write_text(self._meta, json.dumps(self._identity))


def scene_of(index: int, seed: int) -> Scene:
    """The scene of a pretraining image."""
    rng = np.random.default_rng([seed, index])
    if rng.random() < KNOWN_SHARE:
        known = catalog.known_creatures()
        creature = known[rng.integers(len(known))]
    else:
        creature = catalog.Creature("", catalog.EmblemMint().draw(rng), "", "", "")
    return scene.draw_scene(str(index), creature, rng)


def _draw_chunk(start: int, end: int, seed: int) -> np.ndarray:
    images = []
    for index in range(start, end):
        pose = drawing.draw_pose(np.random.default_rng([seed, index, 1]), STRENGTH)
        images.append(np.asarray(drawing.draw(scene_of(index, seed), pose)))
    return np.stack(images)
