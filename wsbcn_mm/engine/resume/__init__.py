"""Resume: position in the data, batch, order and seeds of samples, and gradients of an unfinished accumulation."""
