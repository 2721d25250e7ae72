"""Checkpoints in transformers' format, converted from those that other projects released."""
