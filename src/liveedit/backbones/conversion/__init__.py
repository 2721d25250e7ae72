"""Checkpoints of transformers, built from what other projects released."""
