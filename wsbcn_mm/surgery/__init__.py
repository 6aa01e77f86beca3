"""Inspect and change the layers of a built model. Needs only torch."""
