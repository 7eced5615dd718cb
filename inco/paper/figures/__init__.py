"""The figures of the InCo paper, drawn from run folders: `python -m inco.paper.figures --list`.

Chan et al., Internal Cross-layer Gradients for Extending Homogeneity to Heterogeneity in Federated
Learning, ICLR 2024.
"""
