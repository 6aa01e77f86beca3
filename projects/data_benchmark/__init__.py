"""How fast the recipes' training samples are made, beside the usual ways to make them."""
