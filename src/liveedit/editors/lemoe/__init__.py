"""LEMoE: experts beside an FFN, KV anchor routing, order planning, and the editor that ties them together."""

from .config import LemoeConfig
from .editor import Lemoe

__all__ = ["Lemoe", "LemoeConfig"]
