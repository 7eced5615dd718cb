"""Datasets as resident uint8 tensors, their batched transforms, and their partitions."""
