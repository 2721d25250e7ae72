"""SERAC: a memory of edits, a classifier of their scopes, and a small model that answers inside them."""

from .config import SeracConfig
from .editor import Serac

__all__ = ["Serac", "SeracConfig"]
