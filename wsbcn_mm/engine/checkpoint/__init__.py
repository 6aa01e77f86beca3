"""Checkpoint files: reading, writing, guarding, converting and publishing them."""
