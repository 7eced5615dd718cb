"""What a model family offers the other parts, and what all families share."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from inco.errors import ConfigError, DataError
from inco.flat import Axes
from inco.seeding import seed_for
from inco.types import Output, Pair


class Group(NamedTuple):
    """Channels that a narrower relative can have fewer of.

    `size`: channels of the global model; `unit`: channels that stay together (an attention head);
    `of`: this group is `size` / size of that one many copies of another, one after the other
    (queries, keys and values of the same heads), and follows it.
    """

    size: int
    unit: int = 1
    of: str | None = None


@dataclass(frozen=True)
class Variant:
    """What a relative can be beside less deep.

    `sizes`: channels of the groups that it has fewer of; `scale`: activations of narrowed layers
    are divided by it, HeteroFL's and ScaleFL's Scaler; `batch_stats`: BatchNorm takes the batch at
    hand, in evaluation too, and keeps no buffers; `exits`: number of blocks, over all groups, after
    which the global model has an early head. A relative has the heads within its blocks, and where
    it ends at one, that head is its classifier.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    scale: float = 1.0
    batch_stats: bool = False
    exits: tuple[int, ...] = ()

    def sizes_of(self, groups: Mapping[str, Group]) -> dict[str, int]:
        """Return the number of channels of each group."""
        return {name: self.sizes.get(name, group.size) for name, group in groups.items()}

    def heads(self, blocks: int, most: int) -> tuple[list[int], bool]:
        """Return after which of its `blocks` (of `most`) a relative has heads, and whether the last
        of them is its classifier.
        """
        within = [e for e in self.exits if e <= blocks]
        return within, blocks in within and blocks < most


PLAIN = Variant()


class Scaler(nn.Module):
    """Divide by `rate` (Diao et al., ICLR 2021, Section 3; Ilhan et al., CVPR 2023).

    HeteroFL's code does so in training alone, as it scores the whole model alone, whose rate is 1.
    Narrow models are scored here as well, and as they were trained.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x / self.rate


def scaler(variant: Variant) -> nn.Module:
    """Return the variant's scaler; nothing at a rate of 1."""
    return nn.Identity() if variant.scale == 1 else Scaler(variant.scale)


class Exits(nn.ModuleList):
    """Early heads by the name of the block before each; `ends`: the last one is the classifier."""

    def __init__(self, heads: Iterable[nn.Module], after: Sequence[str], ends: bool) -> None:
        super().__init__(heads)
        self.after = {name: number for number, name in enumerate(after)}
        self.ends = ends

    def run(
        self,
        x: Tensor,
        blocks: Mapping[str, nn.Module],
        classify: Callable[[Tensor], Output],
    ) -> Output:
        """Pass a batch through blocks and classifier, in training through the early heads too."""
        early: list[Tensor] = []
        for name, block in blocks.items():
            x = block(x)
            number = self.after.get(name)
            if number is None:
                continue
            if self.ends and number == len(self) - 1:
                logits, features, _ = self[number](x)
                return Output(logits, features, tuple(early))
            if self.training:
                early.append(self[number](x).logits)
        return classify(x)._replace(exits=tuple(early))


class Family(Protocol):
    """A global model and its relatives of other depths, and widths where it names channel groups.

    `recipe`: which published image preparation it takes ("resnet" or "vit"). `blocks`: number of
    blocks in each group of the global model, e.g. {"layer1": 3, ...}; `after`: modules that come
    after all blocks. `min_batch`: the smallest batch that it can train on. `keep`: a relative has
    the first `keep[i]` blocks of group i (None: all).
    """

    name: str
    recipe: str
    blocks: Mapping[str, int]
    after: tuple[str, ...]
    image_size: int | None
    min_batch: int

    def build(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> nn.Module:
        """Build the global model or a relative."""

    def groups(self, variant: Variant = PLAIN) -> dict[str, Group]:
        """Return the channel groups that relatives can have fewer of, named as in `axes`."""
        return {}

    def level_name(self, keep: Sequence[int]) -> str:
        """Return the short name of a relative, e.g. resnet14."""

    def depth_levels(self) -> list[list[int]]:
        """Return the paper's five sizes for this model, smallest first."""

    def axes(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> dict[str, Axes]:
        """Return the channel group of each dimension of each parameter and buffer."""

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """Return the named activations: tap -> module."""

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Return the cross-layer pairs of the global model ("official" or "paper")."""

    def load_pretrained(self, model: nn.Module) -> None:
        """Overwrite a fresh global model's tensors by pretrained ones, if the settings say so."""


def check_keep(
    name: str, blocks: Mapping[str, int], keep: Sequence[int] | None, least: int = 1
) -> list[int]:
    """Return how many blocks of each group to build, `least` at least; all where `keep` is None."""
    most = list(blocks.values())
    if keep is None:
        return most
    where = f"split.levels has an entry {list(keep)} for model={name}"
    if len(keep) != len(most):
        raise ConfigError(
            f"{where}: give one number of blocks for each of its {len(most)} groups"
            f" ({', '.join(blocks)}); use split={'layer' if len(most) == 1 else 'stage'}"
        )
    if any(not least <= k <= m for k, m in zip(keep, most, strict=True)):
        raise ConfigError(f"{where}: each group keeps {least} to {most} blocks")
    return list(keep)


PROJECTED = 256  # features behind a projection head


def projection(size: int, head: str, hidden: int) -> tuple[nn.Module, int]:
    """Return what stands between features and classifier, and the size of what comes out.

    "none": nothing; "mlp": MOON's projection head, Linear(size, hidden), ReLU, Linear(hidden, 256)
    (Li et al., CVPR 2021, where hidden is the size of the features; narrower relatives keep that of
    the whole model).
    """
    if head == "none":
        return nn.Identity(), size
    layers = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, PROJECTED))
    return layers, PROJECTED


def linear_axes(name: str, produces: str, takes: str) -> dict[str, Axes]:
    """Name the channel groups of a linear layer."""
    return {f"{name}.weight": (produces, takes), f"{name}.bias": (produces,)}


def head_axes(classifier: str, features: str, head: str) -> dict[str, Axes]:
    """Name the channel groups of a classifier and of the projection head before it."""
    if head == "none":
        return linear_axes(classifier, "classes", features)
    return (
        linear_axes("projection.0", "projection.0", features)
        | linear_axes("projection.2", "projection", "projection.0")
        | linear_axes(classifier, "classes", "projection")
    )


def relative(
    family: Family, keep: Sequence[int] | None = None, variant: Variant = PLAIN
) -> nn.Module:
    """Build a relative; a family that knows depth alone is not asked for more."""
    return family.build(keep) if variant == PLAIN else family.build(keep, variant)


def fresh(
    family: Family, seed: int, keep: Sequence[int] | None = None, variant: Variant = PLAIN
) -> nn.Module:
    """Build a model whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "init"))
        return relative(family, keep, variant)


def check_weights(pretrained: bool | str, published: bool, model: str, instead: str) -> None:
    """Raise ConfigError for a file of weights that is not there, and for weights that nobody has
    published.
    """
    if pretrained is True and not published:
        raise ConfigError(
            f"model.pretrained=true: no weights are published for this {model}; use {instead}"
        )
    if isinstance(pretrained, str) and not os.path.isfile(pretrained):
        raise ConfigError(
            f"model.pretrained={pretrained}: no such file; use true (published weights), false, or"
            " the path of a file"
        )


def copy_matching(model: nn.Module, tensors: Mapping[str, Tensor], source: str, head: str) -> None:
    """Copy pretrained tensors into `model`; a classifier (`head`) or projection that does not fit
    stays fresh, all else must fit.
    """
    state = model.state_dict()
    fitting = {
        n: tensors[n] for n, t in state.items() if n in tensors and tensors[n].shape == t.shape
    }
    wrong = [n for n in state if n not in fitting and not n.startswith((head, "projection."))]
    if wrong:
        raise DataError(
            f"model.pretrained={source}: {len(wrong)} of {len(state)} tensors are missing or of"
            f" another shape (first: {wrong[0]} of shape {tuple(state[wrong[0]].shape)}); give"
            " weights of the same model, or model.pretrained=false"
        )
    model.load_state_dict(state | fitting)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a torch file of plain tensors.

    No pickle is run.
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = found.get("state_dict", found) if isinstance(found, dict) else None
        if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
            raise ValueError("it does not hold named tensors")
        return state
    except Exception as error:
        plain = "it holds more than plain tensors, or is no torch file"
        why = plain if isinstance(error, pickle.UnpicklingError) else str(error)
        raise DataError(
            f"model.pretrained={path}: cannot read it ({why}); give a .safetensors or .pt file of"
            " named tensors"
        ) from error
