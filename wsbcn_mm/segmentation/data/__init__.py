"""Segmentation data: datasets, strict labels, transforms and preparation."""
