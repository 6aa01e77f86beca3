"""What the weights of a BN model are worth as a start for WS and BCN."""
