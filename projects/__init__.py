"""Self-contained studies built on the library."""
