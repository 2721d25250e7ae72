"""MEND: gradients of an edit, decomposed, through trained networks into changes of the weights."""

from .config import MendConfig
from .editor import Mend

__all__ = ["Mend", "MendConfig"]
