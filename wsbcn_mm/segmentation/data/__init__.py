"""Segmentation data: data sets, strict labels, transforms and preparation."""
