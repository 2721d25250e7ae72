"""InternVL: an image is cut into tiles, each with the same number of image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .parts import PlaceholderBackbone


class InternVLBackbone(PlaceholderBackbone):
    """InternVL in transformers' format (https://arxiv.org/abs/2412.05271)."""

    marker = "<IMG_CONTEXT>"

    def image_inputs(self, images: Sequence[Any]) -> tuple[dict[str, Tensor], list[int]]:
        """All tiles of all images, (tiles, 3, height, width)."""
        encoded: Any = self.processor.image_processor(images=images, crop_to_patches=True, return_tensors="pt")
        tiles = [int(count) for count in encoded["num_patches"]]
        return {"pixel_values": encoded["pixel_values"]}, [count * self._tokens_per_tile for count in tiles]

    def expanded(self, count: int) -> str:
        """Image tokens between their start and end."""
        return f"<img>{self.marker * count}</img>"

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """Tokens of all tiles."""
        return len(extras["pixel_values"]) * self._tokens_per_tile if "pixel_values" in extras else 0

    @property
    def _tokens_per_tile(self) -> int:
        return int(self.model.config.image_seq_length)
