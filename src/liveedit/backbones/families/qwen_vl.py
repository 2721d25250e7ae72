"""Qwen2.5-VL and Qwen3-VL: the number of image tokens grows with the image, positions have three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..tokens import TokenBatch
from .parts import PlaceholderBackbone


class QwenVLBackbone(PlaceholderBackbone):
    """Qwen's vision-language models (https://arxiv.org/abs/2502.13923)."""

    marker = "<|image_pad|>"
    token_type_name = "mm_token_type_ids"
    has_positions = True

    @property
    def first_edit_layer(self) -> int:
        """Qwen3-VL adds image features again after its first layers (DeepStack)."""
        return len(getattr(self.model.config.vision_config, "deepstack_visual_indexes", ()))

    def image_inputs(self, images: Sequence[Any]) -> tuple[dict[str, Tensor], list[int]]:
        """Patches of all images in one row, and each image's grid (frames, height, width)."""
        encoded = self.processor.image_processor(images=images, return_tensors="pt")
        extras = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
        return extras, self._counts(extras).tolist()

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """One token for each square of merged cells of the grids."""
        return int(self._counts(extras).sum()) if "image_grid_thw" in extras else 0

    def complete(self, inputs: TokenBatch) -> TokenBatch:
        """Token types, and the positions in three axes."""
        inputs = super().complete(inputs)
        if not inputs.extras:
            return inputs
        positions, _ = self.model.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.image_mask.long(),
            image_grid_thw=inputs.extras["image_grid_thw"],
            attention_mask=inputs.attention_mask,
        )
        return replace(inputs, positions=positions)

    def _counts(self, extras: Mapping[str, Tensor]) -> Tensor:
        merged = int(self.model.config.vision_config.spatial_merge_size) ** 2
        return extras["image_grid_thw"].prod(1) // merged
