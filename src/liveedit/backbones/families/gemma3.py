"""Gemma 3: image tokens attend to each other in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.masking_utils import create_masks_for_generate
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from ..backbone import Backbone
from ..tokens import TokenBatch


class Gemma3Backbone(Backbone):
    """Gemma 3 with images (https://arxiv.org/abs/2503.19786)."""

    token_type_name = "token_type_ids"

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """The processor takes the images of each text as a list."""
        remaining = iter(images)
        nested = [[next(remaining)] if self.processor.boi_token in text else [] for text in texts]
        return super().process(texts, nested if images else [])

    def decoder_arguments(self, tokens: TokenBatch, hidden_states: Tensor) -> dict[str, Any]:
        """The masks of layers with sliding-window and with full attention."""
        arguments: dict[str, Any] = {
            "config": self.decoder.config,
            "inputs_embeds": hidden_states,
            "attention_mask": tokens.attention_mask.to(hidden_states.device),
            "past_key_values": None,
            "position_ids": None,
        }
        if not bool(tokens.image_mask.any()):
            return {"attention_mask": create_masks_for_generate(**arguments)}
        blocks = get_block_sequence_ids_for_mask(tokens.image_mask.long(), device=hidden_states.device)
        return {"attention_mask": create_masks_for_vision_model(block_sequence_ids=blocks, **arguments)}
