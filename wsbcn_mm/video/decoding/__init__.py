"""Video decoding in a process that a deadline can end."""
