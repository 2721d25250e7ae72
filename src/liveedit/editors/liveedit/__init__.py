"""LiveEdit: expert generator, feature extractors, routing, losses, training task, and the editor that uses them."""

from .config import LiveEditConfig, LiveEditLosses, RefineConfig
from .editor import LiveEdit
from .refine import LiveEditRefine

__all__ = ["LiveEdit", "LiveEditConfig", "LiveEditLosses", "LiveEditRefine", "RefineConfig"]
