"""Video decoding in a process that is killed at a deadline."""
