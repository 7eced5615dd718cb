"""Rules across groups: combinations that cannot work, told before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inco.config.cross_splits import SPLIT_RULES

Settings = Mapping[str, Any]


def _vit_patches(settings: Settings) -> Iterable[str]:
    model = settings["model"]
    size = model.get("image_size")
    patch = model.get("patch")
    if size and patch and size % patch:
        fit = max(size // patch, 1) * patch
        yield (
            f"model.image_size={size} with model.patch={patch}: a ViT cuts images into whole"
            f" patches; use model.image_size={fit}"
        )
    if "heads" in model and model["dim"] % model["heads"]:
        yield (
            f"model.heads={model['heads']} with model.dim={model['dim']}: each head takes dim/heads"
            " channels; use a divisor of dim"
        )


def _widths_per_stage(settings: Settings) -> Iterable[str]:
    model = settings["model"]
    if "widths" in model and len(model["widths"]) != len(model["blocks"]):
        yield (
            f"model.widths={model['widths']} with model.blocks={model['blocks']}: give one of each"
            " a stage"
        )


def _weights_to_fetch(settings: Settings) -> Iterable[str]:
    model = settings["model"]
    if model.get("pretrained") is True and not model.get("timm_name"):
        yield (
            "model.pretrained=true: no weights are published for this model; use false, the path of"
            " a file, or model=vit_small"
        )


def _batch_norm_batches(settings: Settings) -> Iterable[str]:
    norm = settings["model"]["_target_"] == "inco.models.resnet.ResNetFamily"
    if norm and settings["local"].get("batch_size") == 1:
        yield (
            "local.batch_size=1: BatchNorm cannot train on one example; use local.batch_size=2 or"
            " more"
        )


def _ablations(settings: Settings) -> Iterable[str]:
    transform = settings["transform"]
    if transform.get("rule") == "theorem" and not (
        transform["normalize"] and transform["optimize"]
    ):
        yield (
            "transform.rule=theorem: the ablations change norms and theta, which the theorem has"
            " not; use rule=official or algorithm1"
        )
    if transform.get("theta_max") is not None and not transform["optimize"]:
        yield (
            f"transform.theta_max={transform['theta_max']} with transform.optimize=false: theta is"
            " 1; leave theta_max=null"
        )


def _files(settings: Settings) -> Iterable[str]:
    for group, key in (("partition", "path"), ("capacity", "path")):
        path = settings[group].get(key)
        if (
            path and not os.path.isfile(path)
            # unlike Path.is_file it takes a name that no file system takes for one that is not
            # there
        ):
            yield f"{group}.{key}={path}: no such file"
    weights = settings["model"].get("pretrained")
    if isinstance(weights, str) and not os.path.isfile(weights):
        yield (
            f"model.pretrained={weights}: no such file; use true (published weights), false, or the"
            " path of a file"
        )


def _graphs(settings: Settings) -> Iterable[str]:
    engine = settings["engine"]
    if engine["mode"] == "graph" and engine["device"] == "cpu":
        yield (
            "engine.mode=graph with engine.device=cpu: CUDA graphs need a GPU; use engine.mode=auto"
        )


def _own_gpus(settings: Settings) -> Iterable[str]:
    from inco.engine.workers import under_torchrun  # here: it comes after this module

    engine = settings["engine"]
    gpus = engine["gpus"]
    workers = engine["workers"]
    if gpus is None:
        return
    if engine["device"] == "cpu":
        yield (
            f"engine.gpus={gpus} with engine.device=cpu: a run on the CPU takes no GPU; leave"
            " engine.gpus=null, or use engine.device=auto"
        )
    if workers != "auto" and workers < gpus:
        yield (
            f"engine.gpus={gpus} with engine.workers={workers}: a GPU without a worker is idle; use"
            f" engine.gpus={workers}"
        )
    if under_torchrun():
        yield (
            f"engine.gpus={gpus} under torchrun: it starts the ranks, not InCo; leave"
            " engine.gpus=null, and give it CUDA_VISIBLE_DEVICES"
        )


def _synthetic(settings: Settings) -> Iterable[str]:
    dataset = settings["dataset"]
    if dataset["_target_"] != "inco.data.sources.Synthetic":
        return
    if dataset["shape"][1] != dataset["shape"][2]:
        yield f"dataset.shape={dataset['shape']}: images are square; use [channels, side, side]"
    for key in ("num_train", "num_test"):
        if dataset[key] < dataset["num_classes"]:
            yield (
                f"dataset.{key}={dataset[key]}: less than one image for each of"
                f" dataset.num_classes={dataset['num_classes']}"
            )


def _plain_sgd(settings: Settings) -> Iterable[str]:
    """Methods whose arithmetic assumes that a local step is lr times a gradient, or a number of
    steps.
    """
    algorithm = settings["algorithm"]
    local = settings["local"]
    if algorithm.get("allow_adam") is not False:
        return
    adam = "betas" in local
    momentum = local.get("momentum", 0.0)
    if (
        algorithm["_target_"].endswith(".Scaffold")
        and algorithm["option"] == "II"
        and (adam or momentum)
    ):
        what = "local=adam" if adam else f"local.momentum={momentum}"
        yield (
            f"algorithm=scaffold with {what}: option II reads a gradient off the distance trained,"
            " as plain SGD allows; use local=sgd local.momentum=0, or algorithm.option=I, or"
            " algorithm.allow_adam=true to take the mean step (as the InCo paper)"
        )
    if algorithm["_target_"].endswith(".FedNova") and adam:
        yield (
            "algorithm=fednova with local=adam: the normaliser a_i is defined for SGD; use"
            " local=sgd, or algorithm.allow_adam=true to count local steps instead (as the InCo"
            " paper)"
        )


def _previous_models(settings: Settings) -> Iterable[str]:
    algorithm = settings["algorithm"]
    capacity = settings["capacity"]["_target_"]
    if (
        algorithm.get("allow_moving") is False
        and algorithm["mu"]
        and capacity == "inco.clients.capacity.Resampled"
    ):
        yield (
            "algorithm=moon with capacity=resampled: a client's previous model has another shape"
            " whenever its level has changed; use capacity=five_levels, or"
            " algorithm.allow_moving=true to leave the term out in those rounds"
        )


def _probe_batches(settings: Settings) -> Iterable[str]:
    seen = settings["diagnostics"]
    if "estimator" in seen:
        least = 4 if seen["estimator"] == "unbiased" else 2
        if seen["batch"] < least or seen["images"] % seen["batch"]:
            yield (
                f"diagnostics.batch={seen['batch']} with diagnostics.images={seen['images']}:"
                f" batches of equal size, and of {least} images or more for the {seen['estimator']}"
                f" estimator; use diagnostics.batch={max(seen['images'], least)}"
            )


CROSS_RULES: tuple[tuple[tuple[str, ...], Callable[[Settings], Iterable[str]]], ...] = (
    *SPLIT_RULES,
    (("model",), _widths_per_stage),
    (("model",), _vit_patches),
    (("model",), _weights_to_fetch),
    (("model", "local"), _batch_norm_batches),
    (("transform",), _ablations),
    (("partition", "capacity", "model"), _files),
    (("dataset",), _synthetic),
    (("engine",), _graphs),
    (("engine",), _own_gpus),
    (("algorithm", "local"), _plain_sgd),
    (("algorithm", "capacity"), _previous_models),
    (("diagnostics",), _probe_batches),
)
