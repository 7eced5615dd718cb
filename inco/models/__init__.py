"""Models: each family builds the global model and its relatives, and names axes, taps and pairs."""
