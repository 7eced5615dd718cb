"""Flower's simulation engine (Beutel et al., 2020) on Ray: its message API, our clients and
batches.

There are as many nodes as clients a round; each message says which client the node is this time.
Each client builds a model, as Flower's examples do; data is resident in the actors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.events import Laps, Mover, Reporter, job
from benchmarks.material import Client, Material
from benchmarks.systems.floor import score

app = ClientApp()


@cache
def material() -> Material:
    """What this process trains on, read once."""
    return Material(job()["settings"])


@cache
def cohort(round: int) -> dict[int, Client]:
    """A round's clients by number."""
    return {client.number: client for client in material().clients(round)}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client that the message names."""
    torch.set_num_threads(1)
    config = message.content["config"]
    client = cohort(config["server-round"])[config["client"]]
    model = material().model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.train().parameters(), lr=material().lr)
    loss = torch.zeros(())
    for index in client.batches:
        x, y = material().batch(index)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).logits, y)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"loss": float(loss), "num-examples": client.examples})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )


class Scheduled(FedAvg):
    """FedAvg whose cohorts are the product's."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for node, client in zip(sorted(grid.get_node_ids()), cohort(server_round), strict=True):
            own = ConfigRecord({"client": client, "server-round": server_round})
            yield Message(
                content=RecordDict({"arrays": arrays, "config": own}),
                message_type="train",
                dst_node_id=node,
            )


def measure(order: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds."""
    # the actors wait while the server scores
    torch.set_num_threads(order["options"]["server_threads"])
    model = material().model()
    nodes = material().population.cohort_size
    x, y = material().test
    server = ServerApp()
    lap = Laps()
    moved = Mover(dict(model.named_parameters()))

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        trained = lap()
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = score(model, x, y)
        if number:
            reporter.round(
                number, trained, lap(), moved(dict(model.named_parameters())), accuracy=accuracy
            )
        else:
            reporter.ready()
        lap()
        return MetricRecord({"accuracy": accuracy})

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Scheduled(
            fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes
        )
        strategy.start(
            grid, ArrayRecord(model.state_dict()), num_rounds=order["rounds"], evaluate_fn=evaluate
        )

    actors = order["options"]["actors"]
    backend: Any = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": actors, "include_dashboard": False},
    }
    run_simulation(server_app=server, client_app=app, num_supernodes=nodes, backend_config=backend)
