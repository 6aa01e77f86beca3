"""Segmentation results: metrics, test-time augmentation, overlays and predictions."""
