"""Checkpoint files: save, select, load, check, convert and publish them."""
