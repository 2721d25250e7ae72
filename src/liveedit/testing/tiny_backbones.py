"""Tiny random backbones and images, made in a moment and the same for every call."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ..backbones import Backbone, load_backbone
from ..errors import NotFoundError
from .family_models import FAMILIES


def tiny_families() -> tuple[str, ...]:
    """Names of the families that `tiny_backbone` makes."""
    return tuple(FAMILIES)


def tiny_backbone(family: str = "llava", folder: str | Path | None = None) -> Backbone:
    """A random model of a family on the CPU: four decoder layers of width 64, float32, with tokenizer and processor.

    folder: where its checkpoint is saved; by default in a temporary folder that is removed again. Raises
    `NotFoundError` for an unknown family.
    """
    if family not in FAMILIES:
        raise NotFoundError(f"There is no tiny backbone {family!r}. Give one of {', '.join(FAMILIES)}.")
    if folder is None:
        with TemporaryDirectory() as temporary:
            backbone = tiny_backbone(family, temporary)
        backbone.name = f"tiny-random-{family}"
        return backbone
    FAMILIES[family](Path(folder))
    backbone = load_backbone(folder, device="cpu")
    if backbone.image_token_id is not None:
        # A random model may generate the image token, and then needs an image for it.
        backbone.model.generation_config.suppress_tokens = [backbone.image_token_id]  # type: ignore[union-attr]
    return backbone


def random_image(seed: int) -> Image.Image:
    """An image of 64 x 64 pixels: 8 x 8 blocks of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8)))
