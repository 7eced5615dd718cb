"""Linear centred kernel alignment (CKA) from Gram matrices.

Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019 (CKA); Song et
al., Feature Selection via Dependence Maximization, JMLR 2012, Eq. 5 (the unbiased estimator of
HSIC); Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, Eq. 3 (CKA as a
ratio of averages over mini-batches). A Gram matrix says all that linear CKA needs of m examples'
activations, in m x m numbers, whatever the layer's size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["biased", "unbiased"]


def gram(activations: Tensor) -> Tensor:
    """Return the inner products of every pair of examples, [m, ...] -> [m, m] in float64."""
    rows = activations.flatten(1).double()
    return rows @ rows.T


def prepared(grams: Tensor, estimator: Estimator) -> Tensor:
    """Return Gram matrices [..., m, m] as vectors [..., m * m] whose inner products are HSIC, up to
    a factor that CKA cancels.

    Biased: rows and columns centred. Unbiased: the diagonal is left out first, and the modified
    centring of Szekely and Rizzo (The Annals of Statistics 2014, Eq. 3.1) makes Song's estimator a
    plain inner product.
    """
    m = grams.shape[-1]
    if estimator == "biased":
        centred = grams - grams.mean(-1, keepdim=True)
        return (centred - centred.mean(-2, keepdim=True)).flatten(-2)
    if m < 4:
        raise ValueError(f"{m} examples: the unbiased estimator needs 4 or more")
    off = torch.ones(m, m, dtype=grams.dtype, device=grams.device).fill_diagonal_(0.0)
    grams = grams * off
    rows = grams.sum(-1, keepdim=True) / (m - 2)
    whole = grams.sum((-2, -1), keepdim=True) / ((m - 1) * (m - 2))
    return ((grams - rows - rows.transpose(-2, -1) + whole) * off).flatten(-2)


def hsic(grams: Tensor, others: Tensor, estimator: Estimator) -> Tensor:
    """Return HSIC of every pair of two lists of Gram matrices, [a, m, m], [b, m, m] -> [a, b]."""
    m = grams.shape[-1]
    factor = (m - 1) ** 2 if estimator == "biased" else m * (m - 3)
    return prepared(grams, estimator) @ prepared(others, estimator).T / factor


def cka(grams: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Return the CKA of every pair of models at one layer, [models, batches, m, m] -> [models,
    models].

    HSIC is averaged over the batches before the ratio is taken. A model whose activations do not
    vary over the examples has no similarity to anything: NaN, its own included.
    """
    rows = prepared(grams, estimator).flatten(1)  # the sum over batches is one inner product
    together = rows @ rows.T
    own = together.diagonal().clamp(min=0.0).sqrt()
    scale = own[:, None] * own[None, :]
    return torch.where(scale > 0, together / torch.where(scale > 0, scale, 1.0), torch.nan)
