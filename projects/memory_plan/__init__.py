"""The planned memory of a recipe beside the memory of its real steps."""
