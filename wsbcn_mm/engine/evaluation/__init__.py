"""Evaluation: metrics that are exact over any number of processes."""
