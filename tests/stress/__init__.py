"""Stress tests, which take too long for every run of the tests: `make stress`."""
