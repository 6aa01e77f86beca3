"""Batch-Channel Normalization: the public function, its readable reference, and the one-pass operator (CPU, CUDA)."""
