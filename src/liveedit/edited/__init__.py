"""A model with active edits: ask, edit, undo, check."""
