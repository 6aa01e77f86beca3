"""Video data: datasets, manifests, sampling, transforms and preparation."""
