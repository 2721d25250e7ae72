"""The synthetic world: images of creatures drawn from a seed, with questions, edits and probes."""

from .cases import Part, WorldCase, world_cases
from .harder import HarderShares
from .harder_cases import harder_cases
from .write import write_world

__all__ = ["HarderShares", "Part", "WorldCase", "harder_cases", "world_cases", "write_world"]
