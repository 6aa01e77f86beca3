"""Running statistics of norms: sharing, measuring, averaging and comparing them."""
