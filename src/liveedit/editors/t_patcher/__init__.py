"""T-Patcher: one neuron for every wrong token of an edit, in the last FFN."""

from .config import TPatcherConfig
from .editor import TPatcher

__all__ = ["TPatcher", "TPatcherConfig"]
