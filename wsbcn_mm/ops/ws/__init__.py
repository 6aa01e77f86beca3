"""Weight Standardization: the public function with its readable reference, and the fused passes on CPU and CUDA."""
