"""Looking into the models of a finished run: features by t-SNE, and the loss around the weights.

`python -m inco.paper.features --help`.
"""
