"""Checkpoints: when they are saved, what is in them, how they lie on the disk."""
