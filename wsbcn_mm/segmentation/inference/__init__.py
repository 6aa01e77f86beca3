"""Segmentation of images with a trained model: whole, or in tiles."""
