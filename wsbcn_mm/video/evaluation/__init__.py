"""Video results: metrics, clip strips and contact sheets."""
