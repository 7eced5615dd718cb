"""InCo in code of your own: a HeteroFL-style server on state dicts, and a Flower-style strategy on
lists of arrays.

python examples/state_dict_inco.py

Needs torch and numpy alone (neither HeteroFL nor flwr), and runs in seconds: four clients hold a
tiny ResNet at full, half and quarter width, take one local step on random images, and the server
averages what it gets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if InCo is not installed
import inco

State = dict[str, Tensor]


class Block(nn.Module):
    """A residual block with torchvision's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class TinyResNet(nn.Module):
    """One stage of three blocks: the pairs are layer1.{1,2}.conv{1,2}.weight <-
    layer1.0.conv2.weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(*(Block(width) for _ in range(3)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def corner(shape: Sequence[int]) -> tuple[slice, ...]:
    """The leading part of a tensor that a narrower model of this shape holds."""
    return tuple(slice(n) for n in shape)


def train(width: int, state: State, seed: int) -> State:
    """One client: take the leading channels of the global state, make one step on random images."""
    torch.manual_seed(seed)
    model = TinyResNet(width)
    model.load_state_dict(
        {name: state[name][corner(t.shape)] for name, t in model.state_dict().items()}
    )
    F.cross_entropy(model(torch.randn(16, 3, 8, 8)), torch.randint(10, (16,))).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def scatter_average(old: State, uploads: Sequence[State]) -> State:
    """HeteroFL's server: each coordinate becomes the mean over the clients that hold it, or
    stays.
    """
    new = {}
    for name, value in old.items():
        total = torch.zeros(value.shape)
        count = torch.zeros(value.shape)
        for upload in uploads:
            part = corner(upload[name].shape)
            total[part] += upload[name]
            count[part] += 1
        new[name] = torch.where(count > 0, total / count.clamp(min=1), value).to(value.dtype)
    return new


def with_inco(old: State, new: State, **options: object) -> State:
    """The three lines to add to a server that overwrites weights: form the update, apply InCo, add
    it back.

    The options are those of `inco.cross_layer_gradients`: pairs, rule, normalize, optimize,
    granularity, theta_max, clip, eps.
    """
    update = {name: new[name] - old[name] for name in new}
    update = inco.cross_layer_gradients(update, **options)  # type: ignore[arg-type]
    return {name: old[name] + update[name] for name in new}


class FlowerStyleStrategy:
    """The shape of a Flower strategy: parameters are lists of arrays, so the server must remember
    their names.

    In Flower, subclass FedAvg and call `aggregate_fit` of the base class where `np.average` stands;
    `parameters_to_ndarrays` and `ndarrays_to_parameters` convert on the way in and out.
    """

    def __init__(self, names: Sequence[str], initial: list[np.ndarray]) -> None:
        # list(model.state_dict()), the order in which clients send their arrays
        self.names = list(names)
        self.current = initial

    def aggregate_fit(self, results: Sequence[tuple[list[np.ndarray], int]]) -> list[np.ndarray]:
        """Average (arrays, number of examples) of a round and apply InCo to what the average
        changes.
        """
        arrays, examples = zip(*results, strict=True)
        mean = [
            np.average(np.stack(same), axis=0, weights=examples).astype(same[0].dtype)
            for same in zip(*arrays, strict=True)
        ]
        update = {
            n: torch.from_numpy(np.asarray(new - old))
            for n, new, old in zip(self.names, mean, self.current, strict=True)
        }
        update = inco.cross_layer_gradients(update)
        self.current = [
            old + update[n].numpy() for n, old in zip(self.names, self.current, strict=True)
        ]
        return self.current


def main() -> None:
    torch.manual_seed(0)
    old = TinyResNet(width=16).state_dict()
    widths = (16, 16, 8, 4)
    averaged = scatter_average(old, [train(width, old, seed) for seed, width in enumerate(widths)])
    after = with_inco(old, averaged)
    changed = [name for name in after if not torch.equal(after[name], averaged[name])]
    moved = {
        k: (after[k] - averaged[k]).norm() / (averaged[k] - old[k]).norm()
        for k in inco_targets(old)
    }
    print(
        f"HeteroFL style, widths {widths}: InCo touched {len(moved)} targets; relative change of"
        " their updates:"
    )
    print("\n".join(f"  {name}  {value:.2f}" for name, value in moved.items()))
    assert set(moved) <= set(changed)
    TinyResNet(width=16).load_state_dict(after)

    initial = [t.numpy().copy() for t in old.values()]
    strategy = FlowerStyleStrategy(list(old), initial)
    uploads = [
        ([t.numpy() for t in train(16, old, seed).values()], 10 * (seed + 1)) for seed in range(2)
    ]
    arrays = strategy.aggregate_fit(uploads)
    plain = [
        np.average(np.stack(same), axis=0, weights=[10, 20])
        for same in zip(*(u for u, _ in uploads), strict=True)
    ]
    differs = [
        n
        for n, a, b in zip(old, arrays, plain, strict=True)
        if not np.allclose(a, b, rtol=1e-4, atol=1e-6)
    ]
    print(f"Flower style, 2 clients: InCo changed {len(differs)} tensors")
    print("\n".join(f"  {name}" for name in differs))


def inco_targets(state: State) -> list[str]:
    return [pair.target for pair in inco.cross_layer_pairs(state)]


if __name__ == "__main__":
    main()
