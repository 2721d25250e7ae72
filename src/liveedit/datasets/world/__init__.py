"""The synthetic world: images of creatures drawn from a seed, with questions, edits and probes."""

from .cases import Part, WorldCase, world_cases
from .write import write_world

__all__ = ["Part", "WorldCase", "world_cases", "write_world"]
