"""Time and memory of WS and BCN beside BatchNorm, GroupNorm, the plain formulas and mmcv's ConvWS."""
