"""Idefics3 and SmolVLM: an image and its tiles, each between tokens that give its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Idefics3Processor
from transformers.utils import cached_file

from ..backbone import Backbone
from .parts import load_parts


class Idefics3Backbone(Backbone):
    """Idefics3 (https://arxiv.org/abs/2408.12637) and SmolVLM (https://arxiv.org/abs/2504.05299)."""

    @classmethod
    def load_processor(cls, source: str) -> Any:
        """Idefics3's processor for both: SmolVLM's arranges images in the same way, but needs video libraries."""
        parts = load_parts(source)
        template = parts.chat_template or parts.tokenizer.chat_template
        length = _image_seq_len(source)
        return Idefics3Processor(parts.image_processor, parts.tokenizer, image_seq_len=length, chat_template=template)

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """The same number for each tile. Tiles of zeros are padding."""
        if "pixel_values" not in extras:
            return 0
        tiles = (extras["pixel_values"] != 0).flatten(2).any(2)
        return int(tiles.sum()) * self.processor.image_seq_len


def _image_seq_len(source: str) -> int:
    """Image tokens of a tile, from the processor's configuration."""
    file = cached_file(source, "processor_config.json", _raise_exceptions_for_missing_entries=False)
    values = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    return int(values.get("image_seq_len", 169))
