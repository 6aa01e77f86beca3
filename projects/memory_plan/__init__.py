"""How far the plan of a recipe's memory is from what its real steps take."""
