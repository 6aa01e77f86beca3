"""Recipes: reading them, and changing their norm, batch and precision before a Runner sees them."""
