"""The loop that everybody writes first: deepcopy the model for each client, a DataLoader of PIL
images, average the state dicts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.events import Laps, Mover, Reporter, weights
from benchmarks.material import Client, Material


class Pictures(Dataset[tuple[Tensor, int]]):
    """The training set as PIL images, each prepared when it is asked for."""

    def __init__(self, material: Material) -> None:
        self.material = material
        size = material.test[0].shape[-1]
        self.prepare = transforms.Compose(
            [transforms.ToPILImage(), transforms.Resize(size), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.material.run.dataset.train.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.material.image(index)
        return self.prepare(image), label


def fit(model: nn.Module, pictures: Pictures, client: Client, lr: float) -> dict[str, Tensor]:
    """Train a copy of the model on a client's batches and return its state."""
    local = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(local.parameters(), lr=lr)
    for x, y in DataLoader(pictures, batch_sampler=[index.tolist() for index in client.batches]):
        optimizer.zero_grad()
        F.cross_entropy(local(x).logits, y).backward()
        optimizer.step()
    return local.state_dict()


def average(states: list[dict[str, Tensor]], examples: list[int]) -> dict[str, Tensor]:
    """Return the mean state, weighted by examples."""
    total = sum(examples)
    out = {}
    for name, first in states[0].items():
        mean = sum(state[name] * (n / total) for state, n in zip(states, examples, strict=True))
        out[name] = torch.as_tensor(mean).to(first.dtype)
    return out


@torch.no_grad()
def score(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Return the accuracy in percent."""
    model.eval()
    correct = seen = 0
    for x, y in loader:
        correct += int((model(x).logits.argmax(1) == y).sum())
        seen += len(y)
    return 100 * correct / seen


def measure(job: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds."""
    material = Material(job["settings"])
    model = material.model()
    pictures = Pictures(material)
    test = DataLoader(torch.utils.data.TensorDataset(*material.test), batch_size=1000)
    moved = Mover(weights(model))
    reporter.ready()
    for number in range(1, job["rounds"] + 1):
        clients = material.clients(number)
        lap = Laps()
        states = [fit(model, pictures, client, material.lr) for client in clients]
        model.load_state_dict(average(states, [client.examples for client in clients]))
        trained = lap()
        accuracy = score(model, test)
        reporter.round(number, trained, lap(), moved(weights(model)), accuracy=accuracy)
