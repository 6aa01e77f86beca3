"""What a model trained with BN is worth as a start for WS and BCN, by each way to begin."""
