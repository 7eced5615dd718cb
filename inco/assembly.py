"""Wire the groups together: the one screen where dataset, model, split, algorithm and engine
meet.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.clients.costs import LevelCost, level_cost
from inco.clients.faults import refuse_faulty
from inco.clients.local import Local
from inco.clients.pool import ModelPool
from inco.clients.population import Population
from inco.clients.store import ClientStore
from inco.clients.trainer import Trainer, take
from inco.config.targets import ours
from inco.data.dataset import Dataset, Images
from inco.data.partition import Partition
from inco.data.recipes import Recipe
from inco.data.transforms import Transform
from inco.diagnostics import Subject
from inco.engine.device import set_precision
from inco.engine.engine import Engine
from inco.engine.ranks import Ranks
from inco.errors import ConfigError, DataError
from inco.evaluation.batchnorm import StaticNorm
from inco.evaluation.evaluator import Evaluator
from inco.fast.cuda_graphs import CapturedPasses, CudaGraphs
from inco.models.base import Family
from inco.parts import Parts, built
from inco.seeding import generator, numpy_rng
from inco.simulator import Simulator
from inco.splits.base import Split
from inco.types import SubModel, Upload


@dataclass(frozen=True, eq=False)
class Assembly:
    """A run, ready to start, and what its record says of it."""

    simulator: Simulator
    dataset: Dataset
    partition: Partition
    split: Split
    costs: Mapping[int, LevelCost]
    trainer: Trainer
    evaluator: Evaluator


def assemble(settings: Mapping[str, Any], ranks: Ranks) -> Assembly:
    """Build a run on this rank from validated settings. Raises ConfigError or DataError."""
    seed = settings["seed"]
    set_precision(ranks.device, settings["local"]["precision"])
    parts = built(settings)
    parts.source.check()
    recipe = parts.recipe
    family = parts.family
    split = parts.split
    local = parts.local
    algorithm = parts.algorithm

    dataset: Dataset = ranks.local_first(parts.source.load)
    if ranks.spans_nodes:
        _check_same_data(dataset, ranks)
    partition = _partition(settings, parts, dataset)
    classes = _classes_held(partition, dataset).to(ranks.device)  # tasks carry views of it
    clients = settings["num_clients"], settings["sample_ratio"]
    population = Population(*clients, partition, parts.capacity, split, seed, classes)
    submodels = population.submodels(0)
    _check_arithmetic(
        settings, submodels.values(), recipe.shape, parts.source.num_classes, ranks.device
    )

    pool = ModelPool(
        local,
        ranks.device,
        largest=max(sub.params.layout.numel for sub in submodels.values()),
    )
    store = _store(settings, algorithm, population, ranks)
    trainer = Trainer(
        pool,
        algorithm,
        local,
        uplink=parts.uplink,
        train=_resident(dataset.train, ranks),
        transform=recipe.train,
        smallest=family.min_batch,
        seed=seed,
        store=store,
        passes=_passes(settings["engine"]["mode"], local, ranks),
    )
    evaluator = _evaluator(
        trainer, _resident(dataset.test, ranks), recipe, parts.capacity.levels, split
    )
    costs = ranks.first(
        lambda: {n: level_cost(sub, recipe.shape, algorithm) for n, sub in submodels.items()}
    )
    engine = Engine(
        ranks,
        trainer,
        evaluator,
        uploads=_uploads(algorithm, split),
        sizes={"params": split.params.numel, "buffers": split.buffers.numel},
        holders=population.holders(),
        cohort_size=population.cohort_size,
        flops={level: float(cost.flops) for level, cost in costs.items()},
    )
    simulator = Simulator(
        population,
        engine,
        algorithm,
        parts.transform,
        optimizer=parts.optimizer,
        diagnostics=_diagnostics(parts, evaluator),
        costs=costs,
        images_trained=trainer.images_trained,
        eval_every=settings["eval_every"],
    )
    return Assembly(simulator, dataset, partition, split, costs, trainer, evaluator)


def _check_same_data(dataset: Dataset, ranks: Ranks) -> None:
    """Raise DataError where nodes have data sets of their own that differ."""
    digests = ranks.gather(dataset.digest)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"dataset: rank {rank} has other data than rank 0 (sha256 {digest[:12]} and"
                f" {digests[0][:12]}); give every node the same files"
            )


def _store(
    settings: Mapping[str, Any], algorithm: Algorithm, population: Population, ranks: Ranks
) -> ClientStore:
    """Return where clients' own vectors wait for their next round."""
    split = population.split
    store = ClientStore(
        settings["engine"]["state_dir"],
        moving=population.moving,
        num_params=split.params.numel,
        num_buffers=split.buffers.numel,
        kept_whole=algorithm.kept_whole,
        memory=int(settings["engine"]["state_memory"] * 2**30),
    )
    if algorithm.stateful and ranks.world > 1:
        _check_shared(store.folder, ranks)
    return store


def _check_shared(folder: Path, ranks: Ranks) -> None:
    """Raise ConfigError where ranks do not see the same folder of clients' own vectors, which would
    come out at a client's second turn alone.
    """
    name = ranks.first(lambda: _new_file(folder))
    seen = ranks.gather((folder / name).exists())
    if ranks.rank == 0:
        (folder / name).unlink()
    unseeing = [rank for rank, sees in enumerate(seen) if not sees]
    if unseeing:
        raise ConfigError(
            f"engine.state_dir={folder}: ranks {unseeing} do not see what rank 0 writes there, and"
            " clients' own vectors are read by whoever trains the client next; use a folder on a"
            " file system that all nodes share"
        )


def _new_file(folder: Path) -> str:
    """Make an empty file that no run has made before, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix="seen-by-all-", dir=folder)
    os.close(handle)
    return Path(path).name


def _uploads(algorithm: Algorithm, split: Split) -> dict[str, Upload]:
    """Return all that is averaged in a round: what the algorithm sends, the buffers, and what the
    split derives.
    """
    weighting = algorithm.weighting
    # running statistics may be large, and need fewer digits than updates
    buffers = Upload(weighting, "buffers", limit=2.0**30)
    return {**algorithm.uploads, "buffers": buffers, **split.uploads(weighting)}


def _partition(settings: Mapping[str, Any], parts: Parts, dataset: Dataset) -> Partition:
    partition: Partition = parts.partition(
        dataset.train.labels.numpy(),
        len(dataset.classes),
        settings["num_clients"],
        numpy_rng(settings["seed"], "partition"),
    )
    _check_smallest(partition, parts.family)
    return partition


def _classes_held(partition: Partition, dataset: Dataset) -> Tensor:
    """Return which classes each client has examples of, bool [clients, classes]."""
    counts = partition.class_counts(dataset.train.labels.numpy(), len(dataset.classes))
    return torch.from_numpy(counts > 0)


def _evaluator(
    trainer: Trainer,
    test: Images,
    recipe: Recipe,
    levels: Sequence[int],
    split: Split,
) -> Evaluator:
    """Score in the trainer's models, with BatchNorm as the split has it."""
    precision = trainer.local.precision
    norm = None
    if split.norm.kind == "static":
        norm = StaticNorm(
            trainer.pool,
            trainer.train,
            recipe.train,
            split.norm.images,
            trainer.seed,
            precision,
        )
    by_batch = split.norm.kind == "batch"
    return Evaluator(
        trainer.pool, test, recipe.test, levels, trainer.seed, norm, precision, by_batch
    )


def _passes(mode: str, local: Local, ranks: Ranks) -> CapturedPasses | None:
    """Captured passes where a GPU can have them; results are the same without."""
    if ranks.device.type == "cuda":
        if mode == "eager":
            return None
        return CapturedPasses(local.batch_size, local.precision, CudaGraphs(), mode == "graph")
    if mode == "graph":
        raise ConfigError(
            "engine.mode=graph without a GPU: CUDA graphs need one; use engine.mode=auto"
        )
    return None


def _diagnostics(parts: Parts, evaluator: Evaluator) -> Any:
    """Diagnostics, bound to images of the test set, to the models and to their pairs."""
    split = parts.split
    probe = _probe(evaluator.test, evaluator.transform, parts.diagnostics.probe, evaluator.seed)
    taps = [split.taps(level) for level in range(len(split.names))]
    parts.diagnostics.bind(Subject(probe, taps, split.names, split.params, split.pairs))
    return parts.diagnostics


def _probe(test: Images, transform: Transform, count: int, seed: int) -> Tensor:
    """Return images of the test set, the same in every round of a run, prepared as for scoring."""
    chosen = torch.randperm(len(test.labels), generator=generator(seed, "probe"))[:count].to(
        test.labels.device
    )
    return take(
        test, chosen, transform, generator(seed, "probe_transform", device=test.labels.device)
    )[0]


def _resident(images: Images, ranks: Ranks) -> Images:
    return Images(images.images.to(ranks.device), images.labels.to(ranks.device))


def _check_arithmetic(
    settings: Mapping[str, Any],
    submodels: Iterable[SubModel],
    shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device,
) -> None:
    """Refuse models that a library would compute wrongly here; those of this project do not meet
    such faults.
    """
    if device.type == "cpu" and not {"model", "split"} <= ours(settings):
        for sub in submodels:
            refuse_faulty(sub, shape, num_classes, settings["local"]["precision"])


def _check_smallest(partition: Partition, family: Family) -> None:
    client = int(partition.sizes.argmin())
    size = int(partition.sizes[client])
    if size < family.min_batch:
        raise ConfigError(
            f"partition: client {client} holds {size} example(s), and {family.name} has BatchNorm,"
            f" which trains on {family.min_batch} or more; use"
            f" partition.min_size={family.min_batch} where there is one, or fewer clients"
        )
