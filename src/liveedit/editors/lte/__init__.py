"""LTE: a model that is tuned to follow an edit in its context, and a retriever that puts the right one there."""

from .config import LearningToEditConfig
from .editor import LearningToEdit

__all__ = ["LearningToEdit", "LearningToEditConfig"]
