"""Video models: 3D ResNets, inflation, recognizer and deployment."""
