"""Experts: what edits add to a model, and the repository that holds them in memory."""

from .expert import Expert, LowRankExpert
from .repository import ExpertRepository

__all__ = ["Expert", "ExpertRepository", "LowRankExpert"]
