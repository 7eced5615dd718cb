"""Features of one class at every capacity, embedded together (the paper's Figure 9 d to f).

van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inco.diagnostics.features import separation
from inco.errors import ConfigError, DataError
from inco.paper.features.rebuild import Rebuilt
from inco.seeding import seed_for

_PERPLEXITY = 30.0  # scikit-learn's usual one; fewer points take a smaller one


def manifold() -> Any:
    """Return scikit-learn's module of embeddings. ConfigError where it is not installed."""
    try:
        return import_module("sklearn.manifold")
    except ImportError as error:
        raise ConfigError(
            "t-SNE needs scikit-learn, which is not installed; use: pip install scikit-learn"
        ) from error


def tsne(rebuilt: Rebuilt, label: str, images: int) -> dict[str, np.ndarray]:
    """Return the arrays of features.npz, for the same images of one class at each capacity.

    `features` [n, d] is what the classifier sees, `points` [n, 2] their t-SNE, `name` and `level`
    the capacity of each, `image` its position in the test set; `separation` is within / between
    capacities, in feature space.
    """
    learn = manifold()
    if rebuilt.run.split.norm.kind == "batch":
        raise ConfigError(
            "split.bn=batch: these models are normalised by the images at hand, which of one class"
            " are not those they are scored with; use a run with split.bn=aggregated or static"
        )
    classes = rebuilt.run.dataset.classes
    number = _number(classes, label)
    examples = (rebuilt.evaluator.test.labels == number).nonzero().flatten()[:images]
    if len(examples) < 2:
        raise ConfigError(
            f"--class {label}: the test set has {len(examples)} image(s) of it, and features need"
            " 2; use another class"
        )
    found = {level: _features(rebuilt, level, examples) for level in rebuilt.levels}
    sizes = {rebuilt.name(level): features.shape[1] for level, features in found.items()}
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"features of different length ({each}) cannot be embedded together; use a run whose"
            " models differ in depth, as split=stage"
        )
    features = torch.cat(list(found.values()))
    level = torch.tensor(list(found)).repeat_interleave(len(examples))
    if not bool((features != features[0]).any()):
        raise DataError(
            "all features are the same: these models tell no image from another; use a run that has"
            " learnt more"
        )
    return {
        "features": features.numpy(),
        "points": _embedded(learn, features.numpy(), rebuilt.seed),
        "level": level.numpy(),
        "name": np.array([rebuilt.name(k) for k in level.tolist()]),
        "image": examples.repeat(len(found)).numpy(),
        "class": np.array(classes[number]),
        "separation": np.array(separation(features, level)),
        "title": np.array(rebuilt.title),
    }


def _number(classes: Sequence[str], label: str) -> int:
    """Return a class by its name, or by its number where no class has that name."""
    if label in classes:
        return list(classes).index(label)
    if label.isdigit() and int(label) < len(classes):
        return int(label)
    raise ConfigError(
        f"--class {label}: there are {len(classes)} classes ({', '.join(classes)}); use a name, or"
        " a number from 0"
    )


@torch.no_grad()
def _features(rebuilt: Rebuilt, level: int, examples: Tensor) -> Tensor:
    model = rebuilt.bound(level).model
    with rebuilt.autocast():
        found = torch.cat([model(x).features.float() for x, _ in rebuilt.batches(examples)])
    rebuilt.release(model)
    return found


def _embedded(learn: Any, features: np.ndarray, seed: int) -> np.ndarray:
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    state = seed_for(seed, "tsne") % 2**32
    method = learn.TSNE(perplexity=perplexity, init="pca", random_state=state, n_jobs=1)
    return np.asarray(method.fit_transform(features), dtype=np.float32)
