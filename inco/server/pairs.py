"""Cross-layer pairs: which layer's update is mixed with that of which shallower layer.

The only place where InCo reads meaning from tensor names. The names understood are those of
torchvision ResNets (`layer<stage>.<block>.conv<i>.weight`) and timm ViTs
(`blocks.<block>.norm<i>.weight` and so on), behind any prefix that ends in "." or "/". Everything
else has no pairs of its own and takes the user's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from inco.types import Pair

Shape = tuple[int, ...]
UserPairs = Mapping[str, str] | Iterable[Pair | Sequence[str]]

STYLES = ("official", "paper")

_NAME = re.compile(
    r"(?P<prefix>(?:.*[./])?)(?:layer(?P<stage>\d+)|blocks)\.(?P<block>\d+)\.(?P<role>.+)"
)
_CONV = re.compile(r"conv\d+\.weight")
_VIT = re.compile(r"(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.weight")


class _Place(NamedTuple):
    """Where a tensor stands: its block within a stage (a ViT is one stage), and its role within the
    block.
    """

    block: int
    role: str
    name: str
    shape: Shape


def cross_layer_pairs(
    names_and_shapes: Mapping[str, Any], style: str | UserPairs = "official"
) -> tuple[Pair, ...]:
    """Find the cross-layer pairs of a model: each deeper target with its shallow reference of equal
    shape.

    `names_and_shapes`: a state dict, or shapes by name (anything with `.shape`, or a sequence of
    ints). Names that match no known pattern have no pairs; pairs never cross a prefix ("module.",
    "resnet10/").

    `style`: "official": what the published code mixes. ResNets: the 3x3 convolutions
    `layer<s>.<b>.conv{1,2}.weight` of every block b >= 1, each with `layer<s>.0.conv2.weight`.
    ViTs: `blocks.<b>.norm2.weight` with `blocks.<b>.norm1.weight`. "paper": the first tensor of a
    stage is the reference of all later ones of its shape. ResNets: convolution weights within a
    stage, so stage 1's reference is `layer1.0.conv1.weight`. ViTs: all blocks are one stage, and a
    weight matrix or norm weight pairs with the one of the same role in the first block (our
    reading: the paper says "same shape", and a qkv matrix has no other role of its shape, whereas
    norm1 and norm2 do). your own pairs: (target, reference) tuples, `Pair`s, or a mapping target ->
    reference; they are checked.

    Raises ValueError for an unknown style, and for own pairs with unknown names or unequal shapes.
    Chan et al., ICLR 2024, Internal Cross-layer Gradients, Algorithm 1 and App. C.2, G.3.
    """
    shapes = {name: _shape(value) for name, value in names_and_shapes.items()}
    if not isinstance(style, str):
        return check_pairs(style, shapes)
    if style not in STYLES:
        raise ValueError(
            f"pairs={style}: no such style; use official, paper or a list of [target, reference]"
        )
    find = {"official": _official, "paper": _paper}[style]
    return tuple(pair for is_resnet, places in _stages(shapes) for pair in find(places, is_resnet))


def check_pairs(pairs: UserPairs, names_and_shapes: Mapping[str, Any]) -> tuple[Pair, ...]:
    """Return the user's pairs as `Pair`s, or raise one ValueError that lists every wrong one, with
    names that are close.
    """
    shapes = {name: _shape(value) for name, value in names_and_shapes.items()}
    chosen = as_pairs(pairs)
    problems = [problem for pair in chosen for problem in _problems(pair, shapes)]
    if problems:
        raise ValueError("\n".join(problems))
    return chosen


def as_pairs(pairs: UserPairs) -> tuple[Pair, ...]:
    """Return `pairs` as `Pair`s without looking at any model.

    Raises ValueError for a wrong form or a target named twice.
    """
    given = pairs.items() if isinstance(pairs, Mapping) else pairs
    chosen = tuple(pair if isinstance(pair, Pair) else _as_pair(pair) for pair in given)
    targets = [pair.target for pair in chosen]
    twice = sorted({t for t in targets if targets.count(t) > 1})
    if twice:
        raise ValueError(
            f"pairs: {', '.join(twice)} is the target of two pairs; a target has one reference"
        )
    return chosen


def _as_pair(pair: Sequence[str]) -> Pair:
    if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise ValueError(
            f"pairs: {pair!r} is not a pair; give [target, reference], two tensor names"
        )
    return Pair(*pair)


def _problems(pair: Pair, shapes: Mapping[str, Shape]) -> Iterator[str]:
    label = f"pairs: {pair.target} <- {pair.reference}"
    if pair.target == pair.reference:
        yield f"{label}: a tensor cannot be its own reference; name a shallower one of equal shape"
    for name in dict.fromkeys((pair.target, pair.reference)):
        if name not in shapes:
            close = " or ".join(get_close_matches(name, shapes, n=3))
            yield f"{label}: no tensor is called {name}; " + (
                f"did you mean {close}?" if close else "check its name"
            )
    target = shapes.get(pair.target)
    reference = shapes.get(pair.reference)
    if target is not None and reference is not None and target != reference:
        same = [name for name, shape in shapes.items() if shape == target and name != pair.target]
        fix = (
            f"of shape {list(target)} are {', '.join(same[:3])}"
            if same
            else "no other tensor has the target's shape"
        )
        yield (
            f"{label}: the shapes {list(target)} and {list(reference)} differ, and a pair needs"
            f" equal ones; {fix}"
        )


def _shape(value: Any) -> Shape:
    return tuple(int(n) for n in getattr(value, "shape", value))


def _stages(shapes: Mapping[str, Shape]) -> Iterator[tuple[bool, list[_Place]]]:
    """Yield (is it a ResNet's, the tensors in order of depth) for every stage of every prefix."""
    stages: dict[tuple[str, str | None], list[_Place]] = defaultdict(list)
    for name, shape in shapes.items():
        if found := _NAME.fullmatch(name):
            place = _Place(int(found["block"]), found["role"], name, shape)
            stages[found["prefix"], found["stage"]].append(place)
    for (_, stage), places in stages.items():
        yield stage is not None, sorted(places)


def _official(places: list[_Place], is_resnet: bool) -> Iterator[Pair]:
    at = {(p.block, p.role): p for p in places}
    for place in places:
        if is_resnet:
            reference = at.get((0, "conv2.weight"))
            wanted = (
                place.block > 0
                and place.role in ("conv1.weight", "conv2.weight")
                and place.shape[2:] == (3, 3)
            )
        else:
            reference = at.get((place.block, "norm1.weight"))
            wanted = place.role == "norm2.weight"
        if wanted and reference is not None and reference.shape == place.shape:
            yield Pair(place.name, reference.name)


def _paper(places: list[_Place], is_resnet: bool) -> Iterator[Pair]:
    first: dict[tuple[str, Shape], _Place] = {}
    for place in places:
        if not (_CONV if is_resnet else _VIT).fullmatch(place.role):
            continue
        reference = first.setdefault(("" if is_resnet else place.role, place.shape), place)
        if reference is not place:
            yield Pair(place.name, reference.name)
