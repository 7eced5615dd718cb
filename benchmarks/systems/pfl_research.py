"""pfl-research (Granqvist et al., NeurIPS 2024 datasets and benchmarks): its simulated backend on
our clients and batches.

Its cohorts come from the product's schedule and go to its processes longest first, as its own
sampler does; data is resident.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.events import Laps, Mover, Reporter
from benchmarks.material import Client, Material
from inco.fast.schedule import assign


class Net(nn.Module):
    """The model with the two methods that pfl asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.net.train()
        return F.cross_entropy(self.net(x).logits, y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        self.net.eval()
        logits = self.net(x).logits
        correct = int((logits.argmax(1) == y).sum())
        loss = float(F.cross_entropy(logits, y, reduction="sum"))
        return {"accuracy": Weighted(correct, len(y)), "loss": Weighted(loss, len(y))}


class User(PyTorchTensorDataset):
    """One client: its batches as scheduled, made when they are asked for."""

    def __init__(self, client: Client, material: Material) -> None:
        super().__init__((torch.empty(client.examples, 0),), user_id=str(client.number))
        self.client = client
        self.material = material

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, ...]]:
        for index in self.client.batches:
            yield self.material.batch(index)


class Scheduled(FederatedDatasetBase):
    """The product's cohorts, one a call of `get_cohort`."""

    def __init__(self, material: Material, rank: int, world: int) -> None:
        super().__init__()
        self.material = material
        self.rank = rank
        self.world = world
        self.round = 0

    def __next__(self) -> tuple[User, int]:
        raise NotImplementedError("cohorts are asked for as a whole")

    def get_cohort(self, cohort_size: int) -> Iterator[tuple[User, int]]:
        self.round += 1
        clients = self.material.clients(self.round)
        for position in assign([float(c.examples) for c in clients], self.world)[self.rank]:
            yield User(clients[position], self.material), position


class Clock(TrainingProcessCallback):
    """Takes the time before and after the central evaluation; the instance that has a reporter
    tells the round.
    """

    def __init__(
        self, lap: Laps, spent: dict[str, float], part: str, reporter: Reporter | None = None
    ) -> None:
        self.lap = lap
        self.spent = spent
        self.part = part
        self.reporter = reporter
        self.moved: Mover | None = None

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.moved = Mover(model.variable_map)
        if self.reporter:
            self.reporter.ready()
        self.lap()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.spent[self.part] = self.lap()
        if self.reporter and self.moved:
            self.reporter.round(
                central_iteration + 1,
                self.spent["train"],
                self.spent["eval"],
                self.moved(model.variable_map),
            )
            self.lap()
        return False, Metrics()


def measure(job: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds. pfl scores after the second round first, so that the warm-up round has
    no scoring.
    """
    material = Material(job["settings"])
    group = get_framework_module().distributed
    test = PyTorchTensorDataset(material.test)
    net = Net(material.model())
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    users = Scheduled(material, group.global_rank, group.world_size)
    score = NNEvalHyperParams(local_batch_size=job["options"].get("eval_batch", 1000))
    lap, spent = Laps(), {}  # type: ignore[var-annotated]
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job["rounds"],
            evaluation_frequency=10**9,
            train_cohort_size=material.population.cohort_size,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=material.lr,
            local_batch_size=material.batch_size,
        ),
        model_eval_params=score,
        callbacks=[
            Clock(lap, spent, "train"),
            CentralEvaluationCallback(test, model_eval_params=score),
            Clock(lap, spent, "eval", reporter),
        ],
    )
