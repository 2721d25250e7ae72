"""IKE: the nearest stored edit is put into the prompt as text."""

from .config import InContextConfig
from .editor import InContext

__all__ = ["InContext", "InContextConfig"]
