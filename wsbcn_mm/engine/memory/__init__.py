"""Memory: planning it, explaining its exhaustion, and keeping fewer activations."""
