"""InCo in a HeteroFL server: clients hold the leading channels of every layer, and the server
averages coordinate by coordinate.

python examples/heterofl_inco.py

Eight clients train a small ResNet at full, half and quarter width on the bundled digits; four of
them take part in a round. InCo is one function, `with_inco`, between average and assignment. This
shows how to connect it, in seconds, and not what it is worth: chance alone makes larger differences
in ten rounds of one seed.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if InCo is not installed
import inco
from inco.data.sources import Digits

State = dict[str, Tensor]
WIDTHS = (16, 16, 8, 8, 8, 4, 4, 4)  # of each client: channels in stage 1
ROUNDS = 10
SAMPLED = 4
BATCH = 16
LR = 0.05

# as in HeteroFL: each batch by its own statistics
norm = partial(nn.BatchNorm2d, track_running_stats=False)


class Block(nn.Module):
    """torchvision's BasicBlock, under its names: `inco.cross_layer_pairs` finds pairs by them."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), norm(width))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.downsample(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    """Two stages of three blocks, so eight pairs: layer{1,2}.{1,2}.conv{1,2}.weight <-
    layer{1,2}.0.conv2.weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = norm(width)
        self.layer1 = nn.Sequential(*(Block(width, width) for _ in range(3)))
        self.layer2 = nn.Sequential(
            Block(width, 2 * width, stride=2), *(Block(2 * width, 2 * width) for _ in range(2))
        )
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))).mean((2, 3)))


def corner(shape: torch.Size) -> tuple[slice, ...]:
    """The leading part of a tensor: what a narrower model, with this shape, holds of it."""
    return tuple(slice(n) for n in shape)


def train(width: int, state: State, images: Tensor, labels: Tensor) -> State:
    """One client: cut its slice out of the global state and train it for an epoch."""
    model = SmallResNet(width)
    model.load_state_dict(
        {name: state[name][corner(t.shape)] for name, t in model.state_dict().items()}
    )
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for batch in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.state_dict()


def scatter_average(old: State, uploads: list[State]) -> State:
    """HeteroFL's server: a coordinate becomes the mean over the clients that hold it; one that
    nobody holds stays.
    """
    new = {}
    for name, value in old.items():
        total = torch.zeros_like(value)
        count = torch.zeros_like(value)
        for upload in uploads:
            part = corner(upload[name].shape)
            total[part] += upload[name]
            count[part] += 1
        new[name] = torch.where(count > 0, total / count.clamp(min=1), value)
    return new


def with_inco(old: State, new: State) -> State:
    """All that InCo adds.

    A kernel that nobody sent has a zero update, and by InCo's default rule it keeps it.
    """
    update = {name: new[name] - old[name] for name in new}
    mixed = inco.cross_layer_gradients(update)
    return {name: old[name] + mixed[name] for name in new}


def simulate(use_inco: bool, rounds: int = ROUNDS) -> list[float]:
    """Run the server and return the test accuracy of the full model after every round."""
    torch.manual_seed(0)
    data = Digits().load()
    images = data.train.images / 16
    tests = data.test.images / 16
    parts = torch.randperm(len(images)).tensor_split(len(WIDTHS))
    model = SmallResNet(max(WIDTHS))
    curve = []
    for _ in range(rounds):
        # a copy: state_dict shares memory with the model
        old = {name: t.clone() for name, t in model.state_dict().items()}
        chosen = torch.randperm(len(WIDTHS))[:SAMPLED].tolist()
        new = scatter_average(
            old,
            [train(WIDTHS[k], old, images[parts[k]], data.train.labels[parts[k]]) for k in chosen],
        )
        model.load_state_dict(with_inco(old, new) if use_inco else new)
        curve.append((model(tests).argmax(1) == data.test.labels).float().mean().item())
    return curve


if __name__ == "__main__":
    torch.set_num_threads(1)  # tensors this small are slower on more
    print("round  HeteroFL  with InCo")
    for number, (plain, mixed) in enumerate(zip(simulate(False), simulate(True), strict=True), 1):
        print(f"{number:5}  {plain:8.1%}  {mixed:9.1%}")
