"""Training runs that are killed at random moments, resumed, and compared bit by bit with those that were not."""
