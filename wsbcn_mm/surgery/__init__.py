"""Look at and change the layers of a built model. It needs torch alone."""
