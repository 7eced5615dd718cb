"""Which function draws which figure of the paper, what it needs, and which options it heeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inco.errors import ConfigError
from inco.paper.figures import cka, gradients, mixing, scores
from inco.paper.figures.options import Options
from inco.records.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Entry:
    """A figure: its numbers in the paper, what it shows and needs, and a table for stdout."""

    numbers: tuple[int, ...]
    draw: Callable[[Sequence[Group], Options], Figure]
    title: str
    needs: str
    options: tuple[str, ...] = ()
    table: Callable[[Sequence[Group], Options], str] | None = None


ENTRIES = (
    Entry(
        (1,),
        cka.similarity_and_accuracy,
        "similarity of clients (CKA) by stage and environment, and its relation to accuracy",
        "runs with diagnostics=cka, a group per environment; ResNets and ViTs have their own rows",
        ("labels", "last", "layers"),
    ),
    Entry(
        (2, 12),
        gradients.across_environments,
        "similarity of two environments' updates by layer and round, and distributions of"
        " gradients",
        "runs with diagnostics=gradients of two settings, with seeds in common (12: of a ViT)",
        ("labels", "layers", "measure", "of"),
    ),
    Entry(
        (3, 13, 14, 15),
        gradients.distributions,
        "distributions of gradients of single layers, a line per measured round",
        "runs with diagnostics=gradients",
        ("labels", "layers", "of"),
    ),
    Entry(
        (7, 24, 25),
        scores.robustness,
        "accuracy against batch size, noise of uploads, or another number that varies",
        "runs that differ in local.batch_size or uplink.scale",
        ("score", "x"),
    ),
    Entry(
        (8, 21, 22, 23),
        scores.ablation,
        "ablation of InCo: accuracy with and without normalisation and optimisation",
        "runs with transform=inco,no_normalization,no_optimization,neither,none",
        ("paper", "score"),
    ),
    Entry(
        (9,),
        mixing.theta_and_beta,
        "theta by layer, share of kernels with beta > 0 by round, features by t-SNE; prints"
        " Table 4",
        "runs with transform=inco or diagnostics=gradients",
        ("labels", "layers", "tsne"),
        mixing.beta_table,
    ),
    Entry(
        (10, 19),
        cka.methods,
        "similarity of clients by method, heat maps of the two deepest stages, accuracy by"
        " capacity",
        "runs with diagnostics=cka, a group per method (19: of a ViT)",
        ("labels", "last", "layers", "score"),
    ),
    Entry(
        (16,),
        gradients.relations,
        "cross-environment CKA of layers against mean, variance, covariance and difference of their"
        " updates",
        "runs with diagnostics=gradients of two settings, with seeds in common",
        ("layers",),
    ),
    Entry(
        (17, 18),
        cka.environments,
        "heat maps of all pairs of clients, a row per environment, a column per stage",
        "runs with diagnostics=cka, a group per environment (18: of a ViT)",
        ("labels", "layers"),
    ),
    Entry(
        (20,),
        scores.convergence,
        "convergence without InCo, with noise instead of it, and with it; the norm of what is"
        " added; prints a table",
        "runs with transform=none,add_noise,inco",
        ("labels",),
        scores.convergence_table,
    ),
)
ABSENT = dict.fromkeys((4, 5, 6), "a drawing of the method, not data")
ABSENT[11] = "not drawn: what it shows could not be settled"
FIGURES = {number: entry for entry in ENTRIES for number in entry.numbers}


def find(number: int) -> Entry:
    """Return what draws a figure of the paper. ConfigError for a number that nothing draws."""
    if number in FIGURES:
        return FIGURES[number]
    why = ABSENT.get(number, "the paper has figures 1 to 25")
    raise ConfigError(
        f"figure {number}: {why}; there are {_joined(sorted(FIGURES))} (python -m"
        " inco.paper.figures --list)"
    )


def listing() -> str:
    """Return each figure's number, what it shows, what it needs and its options."""
    lines = []
    for entry in ENTRIES:
        lines.append(f"{_joined(entry.numbers):>14}  {entry.title}")
        lines.append(f"{'':16}needs {entry.needs}")
        lines.append(f"{'':16}options {_dashed(entry)}")
    lines += [f"{number:>14}  {why}" for number, why in ABSENT.items()]
    return "\n".join(lines)


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _dashed(entry: Entry) -> str:
    return ", ".join(f"--{name}" for name in entry.options)


def check_options(number: int, entry: Entry, given: Sequence[str]) -> None:
    """Raise ConfigError for options that a figure would ignore."""
    for name in given:
        if name not in entry.options:
            heeding = sorted(n for n, other in FIGURES.items() if name in other.options)
            raise ConfigError(
                f"--{name} with figure {number}: it is for {_joined(heeding)}; this one has"
                f" {_dashed(entry)}"
            )
