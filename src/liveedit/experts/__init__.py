"""The expert repository: in memory for the forward pass, durable on disk."""

from .expert import Expert
from .repository import ExpertRepository

__all__ = ["Expert", "ExpertRepository"]
