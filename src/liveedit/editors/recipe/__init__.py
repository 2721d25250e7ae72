"""RECIPE: an edit becomes a short continuous prompt, retrieved if the query is nearer to it than to a sentinel."""

from .config import RecipeConfig
from .editor import Recipe

__all__ = ["Recipe", "RecipeConfig"]
