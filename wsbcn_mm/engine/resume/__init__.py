"""Resuming: the position in the data, the order of samples, and unfinished accumulation."""
