"""Segmentation models: heads, checks, folding and deployment."""
