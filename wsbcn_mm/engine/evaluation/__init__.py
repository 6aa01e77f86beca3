"""Metrics that give the same exact result over any number of processes."""
