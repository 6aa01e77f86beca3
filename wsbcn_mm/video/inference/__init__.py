"""Recognition of clips, and of long videos in windows, with a trained model."""
