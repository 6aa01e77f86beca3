"""Video data: data sets, manifests, sampling, transforms and preparation."""
