"""What inference needs of both tasks: where the recipe is, what the inputs are, progress, tables and drawings."""
