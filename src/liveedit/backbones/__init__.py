"""Frozen models: built-in, from a local folder or GGUF file, or by hub name."""

from .backbone import Backbone
from .built_in import BUILT_IN, built_in_folder
from .loading import load_backbone
from .tokens import HiddenTokens, TokenBatch, TokenRole

__all__ = ["BUILT_IN", "Backbone", "HiddenTokens", "TokenBatch", "TokenRole", "built_in_folder", "load_backbone"]
