"""The speed of the recipes' data pipelines beside the usual ones."""
