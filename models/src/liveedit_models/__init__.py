"""Folders of checkpoints; `liveedit` finds them by name."""
