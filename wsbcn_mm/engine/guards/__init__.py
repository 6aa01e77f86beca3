"""Guards that stop a run whose numbers are wrong."""
