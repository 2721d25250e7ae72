"""Families of models, each in a small file, registered by model_type as `liveedit.backbones` entry points."""

from __future__ import annotations

from ... import registry
from ...registry import BACKBONES
from ..backbone import Backbone
from .text_only import TextBackbone

__all__ = ["backbone_class", "known_model_types"]


def known_model_types() -> tuple[str, ...]:
    """Model types with a registered family. The contract tests cover the built-in ones."""
    return registry.names(BACKBONES)


def backbone_class(model_type: str, reads_images: bool) -> type[Backbone]:
    """The registered class for a model type; for others, the general class for models with or without images.

    Raises `ExtensionError` if the registered class cannot be used.
    """
    if model_type not in known_model_types():
        return Backbone if reads_images else TextBackbone
    found = registry.load(BACKBONES, model_type)
    if not isinstance(found, type) or not issubclass(found, Backbone):
        raise registry.wrong_kind(BACKBONES, model_type, found, "a subclass of liveedit.backbones.Backbone")
    return found
