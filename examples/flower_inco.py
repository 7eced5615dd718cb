"""InCo in Flower: FedAvg strategies that apply InCo to what a round changes, before the result becomes the model.

    pip install flwr
    python examples/flower_inco.py

Trains four Flower clients on the bundled digits in this process (no ray, no network), in seconds. With ray, the same as a simulation:
`flwr.simulation.run_simulation(server_app, client_app, num_supernodes=4)`, with the two apps at the end of this file.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from flwr.app import ArrayRecord
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.serverapp.strategy import FedAvg as MessageFedAvg
except ImportError as error:
    raise SystemExit(f"{Path(__file__).name} needs Flower, which InCo does not install: pip install flwr ({error})") from None

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if InCo is not installed
import inco
from inco.data.sources import Digits

CLIENTS, ROUNDS, BATCH, LR = 4, 5, 16, 0.05


def with_inco(old: dict[str, Tensor], new: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """Old state and average of the clients in, next state out. The options are those of `inco.cross_layer_gradients`."""
    update = {name: new[name] - old[name] for name in old}
    mixed = inco.cross_layer_gradients(update, **options)
    return {name: (old[name] + mixed[name]).to(old[name].dtype) for name in old}


class InCoFedAvg(FedAvg):
    """For clients that exchange lists of arrays: `model` gives their names, which Flower does not send, and the first values."""

    def __init__(self, model: nn.Module, inco_options: dict | None = None, **fedavg) -> None:
        self.state = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
        self.inco_options = inco_options or {}
        super().__init__(initial_parameters=self.parameters(), **fedavg)

    def parameters(self):
        return ndarrays_to_parameters([t.numpy() for t in self.state.values()])

    def aggregate_fit(self, server_round, results, failures):
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        if mean is None:  # nobody answered: the server keeps its parameters
            return None, metrics
        new = dict(zip(self.state, map(torch.from_numpy, parameters_to_ndarrays(mean)), strict=True))
        self.state = with_inco(self.state, new, **self.inco_options)
        return self.parameters(), metrics


class InCoMessageFedAvg(MessageFedAvg):
    """The same for clients that exchange messages: their arrays have names, so the strategy needs no model."""

    def configure_train(self, server_round, arrays, config, grid):
        self.old = arrays.to_torch_state_dict()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        return mean and ArrayRecord(with_inco(self.old, mean.to_torch_state_dict())), metrics


class Block(nn.Module):
    """A residual block under torchvision's names: `inco.cross_layer_pairs` finds pairs by them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class TinyResNet(nn.Module):
    """One stage of three blocks: the pairs are layer1.{1,2}.conv{1,2}.weight <- layer1.0.conv2.weight."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.layer1 = nn.Sequential(*(Block(width) for _ in range(3)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def loaded(arrays: list[np.ndarray]) -> TinyResNet:
    model = TinyResNet()
    model.load_state_dict(dict(zip(model.state_dict(), map(torch.from_numpy, arrays), strict=True)))
    return model


class Client(NumPyClient):
    """Holds one part in `CLIENTS` of the digits."""

    def __init__(self, number: int) -> None:
        train = Digits().load().train
        self.images, self.labels = train.images[number::CLIENTS] / 16, train.labels[number::CLIENTS]

    def fit(self, parameters, config):
        model = loaded(parameters)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        for images, labels in zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return [t.numpy() for t in model.state_dict().values()], len(self.labels), {}


def evaluate(server_round, arrays, config):
    test = Digits().load().test
    with torch.no_grad():
        scores = loaded(arrays).eval()(test.images / 16)
    return F.cross_entropy(scores, test.labels).item(), {"accuracy": (scores.argmax(1) == test.labels).float().mean().item()}


def simulate(strategy: FedAvg) -> list[float]:
    """What Flower's server does: send parameters, collect results, aggregate, evaluate."""
    clients = [Client(number).to_client() for number in range(CLIENTS)]
    parameters, curve = strategy.initialize_parameters(client_manager=None), []
    for number in range(1, ROUNDS + 1):
        results = [(None, client.fit(FitIns(parameters, {}))) for client in clients]
        parameters, _ = strategy.aggregate_fit(number, results, failures=[])
        curve.append(strategy.evaluate(number, parameters)[1]["accuracy"])
    return curve


def server_fn(context) -> ServerAppComponents:
    return ServerAppComponents(strategy=InCoFedAvg(TinyResNet(), evaluate_fn=evaluate), config=ServerConfig(num_rounds=ROUNDS))


server_app = ServerApp(server_fn=server_fn)
client_app = ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client())
