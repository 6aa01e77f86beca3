"""Stress tests, too long for `make test`; `make stress` runs them."""
