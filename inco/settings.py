"""The vocabulary of settings: what an argument of a constructor may be, written once, where it is.

A setting is a positional argument of its class's constructor, annotated with its type, its rule and
its meaning; keyword-only arguments are what other parts give it:

    @checked("algorithm")
    def __init__(self, mu: Annotated[float, at_least(0), "weight of the proximal term"] = 0.1): ...

The constructor, the check of a command line and `--help` read this annotation. The check reads it
from the source (`config/signatures.py`), so no class and no torch is imported for it; therefore an
annotation uses the names of this module, of `typing`, and Python's own alone.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from inco.errors import ConfigError

Init = TypeVar("Init", bound=Callable[..., None])
Weighting = Literal["examples", "uniform"]
"""How uploads are averaged: in proportion to a client's examples, or each client alike."""


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy, and how to say it."""

    holds: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class Setting:
    """What an annotation says of a setting; `required`: the constructor has no default."""

    type: Any
    rule: Rule | None = None
    meaning: str = ""
    required: bool = True


def read(annotation: str) -> Setting:
    """Return what an annotation says. One with names from elsewhere allows any value."""
    try:
        found = _value(ast.parse(annotation, mode="eval").body)
    except (LookupError, TypeError):
        return Setting(Any)
    parts: tuple[Any, ...] = ()
    if typing.get_origin(found) is Annotated:
        found, *extra = typing.get_args(found)
        parts = tuple(extra)
    rule = next((part for part in parts if isinstance(part, Rule)), None)
    meaning = next((part for part in parts if isinstance(part, str)), "")
    if typing.get_origin(found) is Literal:
        options = typing.get_args(found)
        return Setting(str, rule or one_of(*options), meaning)
    return Setting(found, rule, meaning)


def _value(node: ast.expr) -> Any:
    """Return the value of an expression of the vocabulary. LookupError for anything else.

    Python's own evaluation would run whatever a file of the user's has there.
    """
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return _NAMES[name] if name in _NAMES else globals()[name]
        case ast.Tuple(elements):
            return tuple(map(_value, elements))
        case ast.BinOp(left, ast.BitOr(), right):
            return _value(left) | _value(right)
        case ast.Subscript(value, index):
            return _value(value)[_value(index)]
        case ast.Call(ast.Name(name), arguments, keywords) if name in _MAKERS:
            named = {str(k.arg): _value(k.value) for k in keywords}
            return globals()[name](*map(_value, arguments), **named)
        case _:
            raise LookupError(ast.unparse(node))


_NAMES = {kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)}
_MAKERS = ("at_least", "above", "between", "one_of", "many", "null_or")  # of rules


def checked(group: str) -> Callable[[Init], Init]:
    """Let a constructor check its settings by their rules. It raises ConfigError with all problems.

    `group`: the options' group, which begins the setting's name in a message.
    """

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)
        annotations = {n: a for n, a in init.__annotations__.items() if isinstance(a, str)}
        rules = {name: read(annotation).rule for name, annotation in annotations.items()}

        @functools.wraps(init)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            problems = [
                f"{group}.{name}={value}: must be {rule.text}"
                for name, value in bound.arguments.items()
                if (rule := rules.get(name)) and not satisfied(rule, value)
            ]
            if problems:
                raise ConfigError(problems)
            init(*args, **kwargs)

        return typing.cast(Init, wrapped)

    return decorate


def satisfied(rule: Rule, value: Any) -> bool:
    """Tell whether a value of any type keeps a rule."""
    try:
        return rule.holds(value)
    except TypeError:
        return False


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def _real(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool)


def _list(v: Any) -> bool:
    return isinstance(v, list | tuple)


def _count(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and v >= 1


def at_least(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v >= low, f"at least {low}")


def above(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v > low, f"above {low}")


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    left = "(" if open_low else "["
    right = ")" if open_high else "]"

    def holds(v: Any) -> bool:
        return (
            _number(v)
            and (low < v if open_low else low <= v)
            and (v < high if open_high else v <= high)
        )

    return Rule(holds, f"in {left}{low}, {high}{right}")


def one_of(*options: str | int) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(map(str, options)))


def many(each: Rule, most: int | None = None) -> Rule:
    """A list whose entries all satisfy a rule."""
    count = "a list" if most is None else f"a list of {most}"
    return Rule(
        lambda v: len(v) > 0 and most in (None, len(v)) and all(each.holds(x) for x in v),
        f"{count}, each {each.text}",
    )


def null_or(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"null, or {rule.text}")


COUNT = Rule(_count, "a whole number of at least 1")
WEIGHTS = Rule(
    lambda v: isinstance(v, bool) or (isinstance(v, str) and v != ""),
    "true, false or the path of a file",
)
LEVELS = Rule(
    lambda v: (
        len(v) > 0
        and all(_count(x) or (_list(x) and len(x) > 0 and all(_count(y) for y in x)) for x in v)
    ),
    "a list with one entry a level, each a number of blocks or a list of them",
)
RATES_AND_EXITS = Rule(
    lambda v: (
        len(v) > 0
        and all(
            _list(x) and len(x) == 2 and _number(x[0]) and 0 < x[0] <= 1 and _count(x[1]) for x in v
        )
    ),
    "a list of [rate, exits], rates above 0 and at most 1, exits a whole number of at least 1",
)
PAIRS = Rule(
    lambda v: (
        v in ("auto", "official", "paper")
        or (_list(v) and all(_list(x) and len(x) == 2 for x in v))
    ),
    "auto, official, paper or a list of [target, reference]",
)
LAYERS = Rule(
    lambda v: v == "auto" or (_list(v) and len(v) > 0 and all(isinstance(x, str) for x in v)),
    "auto or a list of layers as [layer3.0.conv1,layer3.1.conv1]",
)
CHOSEN_PAIRS = Rule(
    lambda v: v != "auto" and PAIRS.holds(v), "official, paper or a list of [target, reference]"
)
NULL_OR_BOUND = Rule(
    lambda v: v is None or (_real(v) and v >= 0), "null, or at least 0 (inf: no bound)"
)
NULL_OR_CLIP = Rule(lambda v: v is None or (_real(v) and v > 0), "null, or above 0 (inf: no clip)")
INTEGER_OR_AUTO = Rule(lambda v: v == "auto" or _count(v), "auto or a whole number of at least 1")


# Settings that several classes take alike.
BatchNorm = Annotated[
    Literal["aggregated", "static", "batch"],
    "BatchNorm when scored: running statistics that travel; measured anew on training images;"
    " those of the test batch",
]
BatchNormImages = Annotated[
    int | None,
    null_or(at_least(2)),
    "with bn=static, images to measure on, evenly spaced; null: the whole training set",
]
BlocksOrPublished = Annotated[
    list[Any] | None,
    null_or(LEVELS),
    "blocks kept by each level, smallest first, a number or one a group; null: the paper's five"
    " sizes",
]
Rates = Annotated[
    list[float],
    many(between(0, 1, open_low=True)),
    "rates, smallest first: a layer of C channels keeps ceil(rate C); of a ViT, heads and MLP"
    " channels",
]
MaskedLoss = Annotated[
    Literal["zero", "minus_inf", "off"],
    "logits of classes that a client has no example of; unless off, it leaves their rows alone",
]
Scaled = Annotated[bool, "divide activations of narrowed layers by the rate, before each norm"]
ProjectionHead = Annotated[
    Literal["none", "mlp"], "mlp: two layers before the classifier, to 256 features (MOON's own)"
]
ImageSize = Annotated[
    int | None,
    null_or(COUNT),
    "side in pixels that images are resized to; null: the dataset's usual one",
]
Weights = Annotated[
    Weighting,
    "how deltas are averaged. examples: in proportion to a client's examples; uniform: all "
    "clients alike",
]
Epochs = Annotated[
    int,
    COUNT,
    "passes over a client's examples a round",
]
BatchSize = Annotated[
    int,
    COUNT,
    "examples a step",
]
LearningRate = Annotated[
    float,
    above(0),
    "learning rate",
]
WeightDecay = Annotated[
    float,
    at_least(0),
    "L2 penalty",
]
DropLast = Annotated[
    bool,
    "leave out a short last batch, except where it is the only one",
]
Precision = Annotated[
    Literal["fp32", "tf32", "bf16"],
    "of arithmetic. fp32: IEEE single precision, on a GPU too; tf32: a GPU's products and"
    " convolutions take inputs of 10 bits; bf16: for forward and backward passes, in scoring too",
]
MaxGradNorm = Annotated[
    float | None,
    null_or(above(0)),
    "longer gradients of a batch are scaled down to this norm; null: no clipping",
]
NonFinite = Annotated[
    Literal["stop", "skip"],
    "what becomes of an upload that is not finite. stop: the run ends, nothing is applied; "
    "skip: it is left out and counted",
]
NoiseScale = Annotated[
    float,
    at_least(0),
    "standard deviation of the noise, in standard deviations of the tensor itself",
]
DataRoot = Annotated[
    str | None,
    "folder of the datasets; a relative path is taken from the working directory",
]
Transforms = Annotated[
    str,
    one_of("published", "corrected"),
    "published: as in the paper's experiments, odd points included; corrected: their mistakes "
    "repaired",
]
Limit = Annotated[
    int | None,
    null_or(COUNT),
    "null: all training images; N: at most so many, equally many of each class as far as there"
    " are, the same in every run",
]
TestLimit = Annotated[int | None, null_or(COUNT), "as limit, of the test images"]
TestDropLast = Annotated[
    int | None,
    null_or(COUNT),
    "null: all test images are scored; N: not those of a last batch of N that is not full",
]
MinSize = Annotated[
    int,
    COUNT,
    "examples: the draw is repeated until every client has them",
]
MaxTries = Annotated[
    int,
    COUNT,
    "draws before giving up with an error",
]
Every = Annotated[
    int,
    COUNT,
    "rounds: the first is measured, and each that this divides",
]
ServerLearningRate = Annotated[
    float,
    above(0),
    "server learning rate",
]
MeanDecay = Annotated[
    float,
    between(0, 1, open_high=True),
    "decay of the mean of updates",
]
Adaptivity = Annotated[
    float,
    above(0),
    "degree of adaptivity: the smaller, the more alike are the steps of all coordinates",
]
