"""Training at one sample per step: BN, GN, GN + WS and BCN + WS on two small real-format data sets."""
