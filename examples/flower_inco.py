"""InCo in Flower: FedAvg strategies that apply InCo to the change a round makes, before it becomes
the model.

pip install flwr
    python examples/flower_inco.py

Trains four Flower clients on the bundled digits in this process (no ray, no network), in seconds.
`server_app` and `client_app` below are the same for Flower's own engines, e.g.
`flwr.simulation.run_simulation(server_app, client_app, num_supernodes=CLIENTS)` with ray.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

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
    raise SystemExit(
        f"flower_inco.py needs Flower, which InCo itself does not: pip install flwr ({error})"
    ) from None

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if InCo is not installed
import inco
from inco.data.sources import Digits

CLIENTS = 4
ROUNDS = 6
BATCH = 8
LR = 0.1
# target: reference; None finds those of ResNets and ViTs by name
PAIRS = {
    "4.weight": "2.weight",
    "6.weight": "2.weight",
}


def with_inco(old: dict[str, Tensor], new: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The state before and the clients' average in, the next state out.

    The options are those of `inco.cross_layer_gradients`.
    """
    update = {name: new[name] - old[name] for name in old}
    mixed = inco.cross_layer_gradients(update, **options)
    return {name: (old[name] + mixed[name]).to(old[name].dtype) for name in old}


class InCoFedAvg(FedAvg):
    """For clients that exchange lists of arrays: `model` has their names, which Flower does not
    send, and the first values.
    """

    def __init__(self, model: nn.Module, inco_options: dict | None = None, **fedavg) -> None:
        self.state = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
        self.inco_options = inco_options or {}
        super().__init__(initial_parameters=self.parameters(), **fedavg)

    def parameters(self):
        return ndarrays_to_parameters([t.numpy() for t in self.state.values()])

    def aggregate_fit(self, server_round, results, failures):
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        if mean is None:  # nobody answered: the server keeps what it has
            return None, metrics
        new = dict(
            zip(self.state, map(torch.from_numpy, parameters_to_ndarrays(mean)), strict=True)
        )
        self.state = with_inco(self.state, new, **self.inco_options)
        return self.parameters(), metrics


class InCoMessageFedAvg(MessageFedAvg):
    """For clients that exchange messages: there arrays have names, and no model is needed."""

    def __init__(self, inco_options: dict | None = None, **fedavg) -> None:
        super().__init__(**fedavg)
        self.inco_options = inco_options or {}

    def configure_train(self, server_round, arrays, config, grid):
        self.old = arrays.to_torch_state_dict()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        return (
            ArrayRecord(with_inco(self.old, mean.to_torch_state_dict(), **self.inco_options)),
            metrics,
        )


def make_model(arrays=()) -> nn.Sequential:
    """A plain CNN with three equal convolutions, loaded with `arrays` if there are any."""
    layers = [
        layer
        for inputs in (1, 12, 12, 12)
        for layer in (nn.Conv2d(inputs, 12, 3, padding=1), nn.ReLU())
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 8 * 8, 10))
    if arrays:
        model.load_state_dict(
            dict(zip(model.state_dict(), map(torch.from_numpy, arrays), strict=True))
        )
    return model


class Client(NumPyClient):
    def __init__(self, number: int) -> None:
        train = Digits().load().train
        self.images = train.images[number::CLIENTS] / 16
        self.labels = train.labels[number::CLIENTS]

    def fit(self, parameters, config):
        model = make_model(parameters)
        optimizer = torch.optim.SGD(model.parameters(), LR)
        for images, labels in zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return [t.numpy() for t in model.state_dict().values()], len(self.labels), {}


@torch.no_grad()
def evaluate(server_round, arrays, config):
    test = Digits().load().test
    scores = make_model(arrays)(test.images / 16)
    return F.cross_entropy(scores, test.labels).item(), {
        "accuracy": (scores.argmax(1) == test.labels).float().mean().item()
    }


def make_strategy(pairs) -> InCoFedAvg:
    torch.manual_seed(0)
    return InCoFedAvg(make_model(), {"pairs": pairs}, evaluate_fn=evaluate, fraction_evaluate=0)


server_app = ServerApp(
    server_fn=lambda context: ServerAppComponents(
        strategy=make_strategy(PAIRS), config=ServerConfig(ROUNDS)
    )
)
client_app = ClientApp(
    client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()
)


def simulate(strategy: FedAvg, rounds: int = ROUNDS) -> list[float]:
    """What Flower's server does in a round: send parameters, collect results, aggregate,
    evaluate.
    """
    clients = [Client(number).to_client() for number in range(CLIENTS)]
    parameters = strategy.initialize_parameters(client_manager=None)
    curve = []
    for number in range(1, rounds + 1):
        results = [(None, client.fit(FitIns(parameters, {}))) for client in clients]
        parameters, _ = strategy.aggregate_fit(number, results, failures=[])
        curve.append(strategy.evaluate(number, parameters)[1]["accuracy"])
    return curve


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # tensors this small are slower on more
    print("round    FedAvg  with InCo")
    for number, (plain, mixed) in enumerate(
        zip(simulate(make_strategy(())), simulate(make_strategy(PAIRS)), strict=True), 1
    ):
        print(f"{number:5}  {plain:8.1%}  {mixed:9.1%}")
