"""Internal cross-layer gradients: the update of a deep layer, mixed with that of a shallow layer of
equal shape.

Symbols: g_k, g_0 are the aggregated updates (new minus old) of the target and of its reference;
n_k, n_0 their norms; alpha = <g_0, g_0>; beta = <g_0, g_k>. Each rule is a linear combination A g_k
+ B g_0 with two numbers for each group of elements (a kernel or a whole layer), and every tensor is
read three times, whatever the rule.

Chan et al., ICLR 2024, Internal Cross-layer Gradients for Extending Homogeneity to Heterogeneity in
Federated Learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inco.server.pairs import UserPairs, as_pairs, check_pairs, cross_layer_pairs
from inco.types import Pair

RULES = ("official", "algorithm1", "theorem")
GRANULARITIES = ("auto", "kernel", "layer")

_CACHED = 1 << 17  # elements of a block on a CPU: its temporaries stay in the cache


@dataclass(frozen=True)
class Mixing:
    """A rule with all its numbers settled.

    Make it with `mixing`, which checks them and fills in the rule's own.
    """

    rule: str
    normalize: bool
    optimize: bool
    per_kernel: bool
    theta_max: float
    clip: float
    eps: float

    @property
    def pair_style(self) -> str:
        """The pairs that go with the rule: the published code's, or the paper's."""
        return "official" if self.rule == "official" else "paper"


class Mixed(NamedTuple):
    """A mixed update, and what the rule did to it as 0-d tensors on its device (no
    synchronisation).
    """

    update: Tensor
    # mean over the groups of the theta in use: >= 0 official, signed algorithm1, <= 0 theorem, 1
    # not optimized
    theta: Tensor
    beta_positive: Tensor  # percent of groups with beta > 0


def mixing(
    rule: str = "official",
    normalize: bool = True,
    optimize: bool = True,
    granularity: str = "auto",
    theta_max: float | None = None,
    clip: float | None = None,
    eps: float | None = None,
) -> Mixing:
    """Check the options of InCo and complete them. None and "auto" mean the rule's own value.

    rule: "official"    u = (g_k/(n_k+eps) + theta g_0/(n_0+eps)) (n_k+n_0)/2, theta =
    |beta|/(alpha+eps); the published code. "algorithm1"  u = (g_k/n_k - theta g_0/n_0) (n_k+n_0)/2,
    theta = beta/alpha; the paper's Algorithm 1. "theorem"     u = g_k if beta >= 0 else g_k -
    (beta/alpha) g_0; the paper's theorem, which has no ablations. normalize: False leaves out the
    norms: u = g_k + theta g_0 (official), g_k - theta g_0 (algorithm1). optimize: False sets theta
    to 1 and, under both rules, adds: (g_k/n_k + g_0/n_0) (n_k+n_0)/2. Both False: g_k + g_0.
    granularity: "kernel" treats each convolution kernel by itself (vectors and matrices whole),
    "layer" each tensor as one vector. Own: kernel for official, layer otherwise. theta_max: >= 0,
    bound on |theta|. Own: 5 for official, inf (no bound) otherwise. clip: > 0, bound on every
    element of u. Own: 0.1 for official (its ablations too), inf (no clip) otherwise. eps: >= 0.
    Own: 1e-7 for official, 0 otherwise. A quotient with a zero denominator is 0, so eps=0 is safe.

    Raises ValueError that names every wrong option.
    """
    _check(rule, normalize, optimize, granularity, theta_max, clip, eps)
    official = rule == "official"
    return Mixing(
        rule,
        normalize and rule != "theorem",
        optimize,
        official if granularity == "auto" else granularity == "kernel",
        float(theta_max) if theta_max is not None else 5.0 if official else inf,
        float(clip) if clip is not None else 0.1 if official else inf,
        float(eps) if eps is not None else 1e-7 if official else 0.0,
    )


def _check(
    rule: str,
    normalize: bool,
    optimize: bool,
    granularity: str,
    theta_max: float | None,
    clip: float | None,
    eps: float | None,
) -> None:
    problems = []
    if rule not in RULES:
        problems.append(f"rule={rule}: no such rule; use one of {', '.join(RULES)}")
    if granularity not in GRANULARITIES:
        problems.append(
            f"granularity={granularity}: no such granularity; use one of {', '.join(GRANULARITIES)}"
        )
    if theta_max is not None and not theta_max >= 0:
        problems.append(
            f"theta_max={theta_max}: a bound on |theta| is 0 or more; use inf for no bound, null"
            " for the rule's own"
        )
    if clip is not None and not clip > 0:
        problems.append(
            f"clip={clip}: a bound on elements is above 0; use inf for no clip, null for the"
            " rule's own"
        )
    if eps is not None and not (eps >= 0 and isfinite(eps)):
        problems.append(
            f"eps={eps}: a stabiliser is 0 or more and finite; use null for the rule's own"
        )
    if rule == "theorem" and not (normalize and optimize):
        setting = "optimize=false" if normalize else "normalize=false"
        problems.append(
            f"{setting} with rule=theorem: the theorem has neither norms nor ablations; use"
            " rule=official"
        )
    if not optimize and theta_max is not None:
        problems.append(
            f"theta_max={theta_max} with optimize=false: theta is 1 and needs no bound; leave"
            " theta_max null"
        )
    if problems:
        raise ValueError("\n".join(problems))


@torch.no_grad()
def mix(
    target: Tensor, reference: Tensor, options: Mixing | None = None, out: Tensor | None = None
) -> Mixed:
    """Return the update of `target` mixed with that of `reference` (equal shapes, any strides), by
    the rules of `mixing`.

    `out`, of the target's shape and dtype, receives the result if given; it may be `target` itself,
    but not `reference`. A zero kernel is as safe as the formula: g_0 = 0 gives g_k/2 where norms
    are in use, g_k = 0 gives 0 where theta is optimized. Half precision is computed in float32.
    Raises ValueError for unequal shapes and for integers.
    """
    options = options or mixing()
    if target.shape != reference.shape:
        raise ValueError(
            f"the shapes {list(target.shape)} and {list(reference.shape)} differ; a pair needs"
            " equal ones"
        )
    if not (target.is_floating_point() and reference.is_floating_point()):
        raise ValueError(
            f"dtypes {target.dtype}, {reference.dtype}: only floating-point updates can be mixed"
        )
    out = torch.empty_like(target) if out is None else out
    work = torch.promote_types(torch.promote_types(target.dtype, reference.dtype), torch.float32)
    if {target.dtype, reference.dtype} != {work}:
        mixed = mix(target.to(work), reference.to(work), options)
        return mixed._replace(update=out.copy_(mixed.update))
    return _mix(target, reference, options, out)


def _mix(target: Tensor, reference: Tensor, options: Mixing, out: Tensor) -> Mixed:
    per_kernel = options.per_kernel and target.ndim > 2
    dims = tuple(range(2 if per_kernel else 0, target.ndim))
    rows = _rows(target) if per_kernel else max(len(target), 1) if target.ndim else 1
    blocks = (x.split(rows) if target.ndim else (x,) for x in (target, reference, out))
    thetas = []
    positives = []
    for g_k, g_0, into in zip(*blocks, strict=True):
        beta, theta, own, other = _coefficients(g_k, g_0, dims, options)
        if own is None:
            into.copy_(g_k)
        else:
            torch.mul(g_k, own, out=into)
        into.addcmul_(g_0, other)
        if isfinite(options.clip):
            into.clamp_(-options.clip, options.clip)
        thetas.append(theta.sum())
        positives.append((beta > 0).sum())
    groups = max(target.shape[:2].numel(), 1) if per_kernel else 1
    return Mixed(
        out, torch.stack(thetas).sum() / groups, torch.stack(positives).sum() * (100 / groups)
    )


def _rows(target: Tensor) -> int:
    """How many output channels to treat at once: few on a CPU (cache), all elsewhere (launches)."""
    if target.device.type != "cpu" or target.numel() == 0:
        return max(len(target), 1)
    return max(1, _CACHED * len(target) // target.numel())


class _Coefficients(NamedTuple):
    """Of each group: beta, theta, and A (None is 1) and B of A g_k + B g_0."""

    beta: Tensor
    theta: Tensor
    own: Tensor | None
    other: Tensor


def _coefficients(
    g_k: Tensor, g_0: Tensor, dims: tuple[int, ...], options: Mixing
) -> _Coefficients:
    """Weigh the two updates in every group; `dims` are the dimensions of one."""
    alpha = _inner(g_0, g_0, dims)
    beta = _inner(g_0, g_k, dims)
    theta = _theta(alpha, beta, options)
    adds = options.rule == "official" or not options.optimize
    other = theta if adds else -theta
    if not options.normalize:
        return _Coefficients(beta, theta, None, other)
    n_0 = alpha.sqrt()
    n_k = _inner(g_k, g_k, dims).sqrt()
    mean = (n_k + n_0) / 2
    own = _quotient(mean, n_k + options.eps)
    return _Coefficients(beta, theta, own, other * _quotient(mean, n_0 + options.eps))


def _inner(a: Tensor, b: Tensor, dims: tuple[int, ...]) -> Tensor:
    """<a, b> over `dims`.

    Whole layers row by row, then over rows: torch splits one long sum by the number of threads.
    """
    product = a * b
    if 0 in dims and a.ndim > 1:
        product = product.sum(dims[1:], keepdim=True)
    return product.sum(dims, keepdim=True)


def _theta(alpha: Tensor, beta: Tensor, options: Mixing) -> Tensor:
    if not options.optimize:
        return torch.ones_like(alpha)
    theta = _quotient(beta.abs() if options.rule == "official" else beta, alpha + options.eps)
    most = 0.0 if options.rule == "theorem" else options.theta_max
    return theta.clamp(-options.theta_max, most)


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 (b is a norm: its vector is 0 as well); not-a-number stays what it
    is.
    """
    return torch.where(b == 0, 0.0, a / b)


def cross_layer_gradients(
    update: Mapping[str, Tensor],
    pairs: str | UserPairs | None = None,
    *,
    rule: str = "official",
    normalize: bool = True,
    optimize: bool = True,
    granularity: str = "auto",
    theta_max: float | None = None,
    clip: float | None = None,
    eps: float | None = None,
) -> dict[str, Tensor]:
    """Apply InCo to an aggregated update by name (new minus old, never the weights themselves) and
    return it as a new dict.

    `pairs`: None or "auto" finds those of torchvision ResNets and timm ViTs, in the style of the
    rule; "official" and "paper" choose the style; else your own, as (target, reference) tuples or a
    mapping target -> reference. A pair of which the update lacks a tensor (nobody sent it) is
    skipped. All other tensors are passed on, the same objects; `update` is left as it is, and every
    formula reads the untransformed update. The other options are those of
    `inco.server.cross_layer.mixing`.

    Raises ValueError for wrong options, for pairs of unequal shapes and for pairs none of whose
    names is in the update, TypeError for values that are not torch tensors. Chan et al., ICLR 2024,
    Internal Cross-layer Gradients, Algorithm 1.
    """
    options = mixing(rule, normalize, optimize, granularity, theta_max, clip, eps)
    for name, value in update.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"update[{name!r}] is a {type(value).__name__}, not a torch tensor; wrap arrays in"
                " torch.from_numpy"
            )
    result = dict(update)
    for pair in _present_pairs(update, options.pair_style if pairs in (None, "auto") else pairs):
        try:
            result[pair.target] = mix(update[pair.target], update[pair.reference], options).update
        except ValueError as error:
            raise ValueError(f"pairs: {pair.target} <- {pair.reference}: {error}") from None
    return result


def _present_pairs(update: Mapping[str, Any], pairs: str | UserPairs) -> tuple[Pair, ...]:
    """The pairs of which both tensors are in the update.

    ValueError if the user's names have nothing in common with it.
    """
    if isinstance(pairs, str):
        return cross_layer_pairs(update, pairs)
    chosen = as_pairs(pairs)
    foreign = update and not any(
        pair.target in update or pair.reference in update for pair in chosen
    )
    present = tuple(pair for pair in chosen if pair.target in update and pair.reference in update)
    return check_pairs(chosen if foreign else present, update)
