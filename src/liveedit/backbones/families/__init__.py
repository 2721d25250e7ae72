"""Families of models that differ from `Backbone`, one small file for each."""

from __future__ import annotations

from ..backbone import Backbone
from .blip2 import Blip2Backbone
from .gemma3 import Gemma3Backbone
from .idefics3 import Idefics3Backbone
from .internvl import InternVLBackbone
from .qwen_vl import QwenVLBackbone
from .text_only import TextBackbone

_BY_MODEL_TYPE: dict[str, type[Backbone]] = {
    "llava": Backbone,
    "blip-2": Blip2Backbone,
    "qwen2_5_vl": QwenVLBackbone,
    "qwen3_vl": QwenVLBackbone,
    "internvl": InternVLBackbone,
    "gemma3": Gemma3Backbone,
    "idefics3": Idefics3Backbone,
    "smolvlm": Idefics3Backbone,
    "llama": TextBackbone,
    "mistral": TextBackbone,
}
KNOWN_MODEL_TYPES = tuple(_BY_MODEL_TYPE)
"""Model types that the contract test covers."""

__all__ = ["KNOWN_MODEL_TYPES", "backbone_class"]


def backbone_class(model_type: str, reads_images: bool) -> type[Backbone]:
    """The class for a model type. An unknown one gets the general class for models with or without images."""
    return _BY_MODEL_TYPE.get(model_type, Backbone if reads_images else TextBackbone)
