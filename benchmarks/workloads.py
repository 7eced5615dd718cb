"""What is measured: the settings of each workload, composed and checked as `python run.py`
would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from inco.config.naming import plain, register
from inco.errors import ConfigError
from inco.parts import problems as problems_of

CONF = Path(__file__).resolve().parents[1] / "conf"

# One model size, plain averaging, nothing watched: what every other framework can do as well.
_PLAIN = (
    "split=none",
    "transform=none",
    "algorithm=fedavg",
    "server=average",
    "tracker=none",
    "capacity=all_large",
    "engine.device=cpu",
)
_SGD = ("local=sgd", "local.epochs=1", "local.lr=0.05", "local.momentum=0", "local.weight_decay=0")
_SMALL = ("dataset=synthetic", "dataset.shape=[1,16,16]", "dataset.num_classes=4")


@dataclass(frozen=True)
class Workload:
    """A federation to time.

    `overrides`: of the command line of run.py; `quick`: what makes it tiny, for tests of the
    benchmark itself.
    """

    name: str
    about: str
    overrides: tuple[str, ...]
    quick: tuple[str, ...]

    def settings(self, quick: bool = False, more: Sequence[str] = ()) -> dict[str, Any]:
        """Return the settings. Raises ConfigError with all problems."""
        return settings_of(*self.overrides, *(self.quick if quick else ()), *more)


WORKLOADS = {
    "w1": Workload(
        "w1",
        "Fashion-MNIST 1x32x32, 100 clients, dirichlet 0.5, 10 a round, 1 epoch of batches of 64, "
        "SGD 0.05, ResNet10, full test set",
        (
            *_PLAIN,
            *_SGD,
            "dataset=fashion_mnist",
            "model=resnet26",
            "model.blocks=[1,1,1,1]",
            "partition=dirichlet",
            "partition.alpha=0.5",
            "num_clients=100",
            "sample_ratio=0.1",
            "local.batch_size=64",
        ),
        (
            *_SMALL,
            "model.blocks=[1,1]",
            "model.widths=[4,8]",
            "model.stem=small",
            "num_clients=8",
            "sample_ratio=0.5",
            "dataset.num_train=240",
            "dataset.num_test=100",
            "partition.min_size=5",
            "local.batch_size=16",
        ),
    ),
    "w2": Workload(
        "w2",
        "Fashion-MNIST 1x28x28, 1000 clients of 60 examples, 100 a round, one step of 60 each, "
        "SGD 0.05, CNN, full test set",
        (
            *_PLAIN,
            *_SGD,
            "dataset=fashion_mnist",
            "model=cnn",
            "partition=iid",
            "num_clients=1000",
            "sample_ratio=0.1",
            "local.batch_size=60",
        ),
        (
            *_SMALL,
            "model.conv_channels=[4,6]",
            "model.hidden=8",
            "model.kernel=3",
            "model.image_size=null",
            "num_clients=20",
            "sample_ratio=0.2",
            "dataset.num_train=200",
            "dataset.num_test=100",
            "local.batch_size=10",
        ),
    ),
    "gpu": Workload(
        "gpu",
        "the paper's: 100 clients, 10 a round, 5 epochs of batches of 64, Adam, ResNet26 by "
        "stages, InCo, Fashion-MNIST 1x32x32",
        (
            "dataset=fashion_mnist",
            "model=resnet26",
            "split=stage",
            "transform=inco",
            "local=adam",
            "local.epochs=5",
            "local.batch_size=64",
            "num_clients=100",
            "sample_ratio=0.1",
            "tracker=none",
        ),
        (
            "dataset=synthetic",
            "model.widths=[2,4,4,8]",
            "dataset.shape=[3,16,16]",
            "dataset.num_train=400",
            "dataset.num_test=100",
            "num_clients=10",
            "sample_ratio=0.5",
            "local.epochs=1",
            "local.batch_size=16",
        ),
    ),
}


def settings_of(*overrides: str) -> dict[str, Any]:
    """Compose and check a configuration. Raises ConfigError."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        settings = plain(compose("config", overrides=list(overrides)))
    problems = problems_of(settings)
    if problems:
        raise ConfigError(problems)
    return settings


def changed(settings: Mapping[str, Any], group: str, **values: Any) -> dict[str, Any]:
    """Return the settings with some of a group's changed."""
    return {**settings, group: settings[group] | values}
