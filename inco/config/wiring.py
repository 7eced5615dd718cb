"""Wire the groups together: the one screen where dataset, model, split, algorithm and engine meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inco.accounting import LevelCost, level_cost
from inco.captured import CapturedPasses, cuda_graph
from inco.client import Trainer, take
from inco.client_store import ClientStore
from inco.config.targets import build, locate, ours
from inco.data.dataset import Dataset, Images
from inco.data.partition import Partition
from inco.data.transforms import Transform
from inco.diagnostics import Subject
from inco.engine import Engine, Ranks
from inco.errors import ConfigError
from inco.evaluate import Evaluator
from inco.faults import refuse_faulty
from inco.local import Local
from inco.models.base import Family
from inco.pool import ModelPool
from inco.population import Population
from inco.seeding import generator, numpy_rng
from inco.simulator import Simulator
from inco.splits.base import Split
from inco.static_norm import StaticNorm
from inco.types import SubModel


@dataclass(frozen=True, eq=False)
class Assembly:
    """A run, ready to start, and what its record says of it."""

    simulator: Simulator
    dataset: Dataset
    partition: Partition
    split: Split
    costs: Mapping[int, LevelCost]


def assemble(settings: Mapping[str, Any], ranks: Ranks) -> Assembly:
    """Build a run on this rank from validated settings. Raises ConfigError or DataError."""
    seed = settings["seed"]
    source = build("dataset", settings["dataset"])
    source.check()
    chosen = settings["model"]
    recipe = source.recipe(locate("model", chosen["_target_"]).recipe, chosen.get("image_size"))  # a user's model may have none
    family: Family = build("model", settings["model"], shape=recipe.shape, num_classes=source.num_classes)
    split: Split = build("split", settings["split"], family=family)
    levels = dict(num_clients=settings["num_clients"], num_levels=len(split.names), seed=seed)
    capacity = build("capacity", settings["capacity"], **levels)
    local, algorithm = build("local", settings["local"]), build("algorithm", settings["algorithm"])
    transform = build("transform", settings["transform"])
    try:
        transform = transform.bind(split.params, split.pairs)
    except ValueError as error:
        raise ConfigError(f"transform: {error}") from error

    dataset: Dataset = ranks.local_first(source.load)
    scheme = build("partition", settings["partition"])
    labels = dataset.train.labels.numpy()
    partition = scheme(labels, len(dataset.classes), settings["num_clients"], numpy_rng(seed, "partition"))
    _check_smallest(partition, family)
    has = torch.from_numpy(partition.class_counts(labels, len(dataset.classes)) > 0) if split.masked else None
    population = Population(settings["num_clients"], settings["sample_ratio"], partition, capacity, split, seed, has)

    submodels = population.submodels(0)
    _check_arithmetic(settings, submodels.values(), recipe.shape, source.num_classes, ranks.device)
    costs = ranks.first(lambda: {level: level_cost(sub, recipe.shape, algorithm) for level, sub in submodels.items()})
    flops = {level: float(cost.flops) for level, cost in costs.items()}
    pool = ModelPool(local, ranks.device, max(sub.params.layout.numel for sub in submodels.values()))
    uplink = build("uplink", settings["uplink"])
    store = ClientStore(settings["engine"]["state_dir"], population.moving, split.params.numel, split.buffers.numel, algorithm.kept_whole)
    passes = _passes(settings["engine"]["mode"], local, ranks)
    trainer = Trainer(pool, algorithm, local, uplink, _resident(dataset.train, ranks), recipe.train, family.min_batch, seed, store, passes)
    norm = StaticNorm(pool, trainer.train, recipe.train, split.norm.images, seed, local.precision) if split.norm.kind == "static" else None
    evaluator = Evaluator(
        pool, _resident(dataset.test, ranks), recipe.test, capacity.levels, seed, norm, local.precision, split.norm.kind == "batch"
    )
    engine = Engine(
        ranks,
        trainer,
        evaluator,
        split.params,
        split.buffers,
        algorithm.uploads,
        algorithm.weighting,
        population.holders(),
        population.cohort_size,
        flops,
        split.side_size,
    )
    server, diagnostics = build("server", settings["server"]), build("diagnostics", settings["diagnostics"])
    probe = _probe(evaluator.test, recipe.test, diagnostics.probe, seed)
    taps = [split.taps(level) for level in range(len(split.names))]
    diagnostics.bind(Subject(probe, taps, split.names, split.params, split.pairs))
    simulator = Simulator(
        population, engine, algorithm, transform, server, diagnostics, costs, trainer.images_trained, settings["eval_every"]
    )
    return Assembly(simulator, dataset, partition, split, costs)


def _passes(mode: str, local: Local, ranks: Ranks) -> CapturedPasses | None:
    """Captured passes where a GPU can have them; results are the same without."""
    if mode == "graph" and ranks.device.type != "cuda":
        raise ConfigError("engine.mode=graph without a GPU: CUDA graphs need one; use engine.mode=auto")
    return CapturedPasses(local.batch_size, local.precision, cuda_graph) if ranks.device.type == "cuda" and mode != "eager" else None


def _probe(test: Images, transform: Transform, count: int, seed: int) -> Tensor:
    """Return images of the test set, the same in every round of a run, prepared as for scoring."""
    chosen = torch.randperm(len(test.labels), generator=generator(seed, "probe"))[:count].to(test.labels.device)
    return take(test, chosen, transform, generator(seed, "probe_transform", device=test.labels.device))[0]


def _resident(images: Images, ranks: Ranks) -> Images:
    return Images(images.images.to(ranks.device), images.labels.to(ranks.device))


def _check_arithmetic(
    settings: Mapping[str, Any], submodels: Iterable[SubModel], shape: tuple[int, int, int], num_classes: int, device: torch.device
) -> None:
    """Refuse models that a library would compute wrongly here; those of this project do not meet such faults."""
    if device.type == "cpu" and not {"model", "split"} <= ours(settings):
        for sub in submodels:
            refuse_faulty(sub, shape, num_classes, settings["local"]["precision"])


def _check_smallest(partition: Partition, family: Family) -> None:
    client = int(partition.sizes.argmin())
    size = int(partition.sizes[client])
    if size < family.min_batch:
        raise ConfigError(
            f"partition: client {client} holds {size} example(s), and {family.name} has BatchNorm, which trains on "
            f"{family.min_batch} or more; use partition.min_size={family.min_batch} where there is one, or fewer clients"
        )
