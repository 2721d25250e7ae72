"""Training of any editor that has trained parts: stages, checkpoints, several processes."""
