"""LiveEdit: expert generator, feature extractors, routing, losses, and the editor that ties them together."""

from .config import LiveEditConfig
from .editor import LiveEdit
from .refine import LiveEditRefine, RefineConfig

__all__ = ["LiveEdit", "LiveEditConfig", "LiveEditRefine", "RefineConfig"]
