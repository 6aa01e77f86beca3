"""Plan memory, check that loaders fit into it, explain out-of-memory errors, and keep fewer activations."""
