"""Datasets as resident uint8 tensors, their batched transforms, and the partitions that deal
examples to clients.
"""
