"""Models: each family builds the global model and its smaller relatives, and states axes, taps and
cross-layer pairs.
"""
