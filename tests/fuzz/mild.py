"""Random command lines that are likely to be valid, of runs that take a second: options of all
groups with small values.
"""

from __future__ import annotations

import random

from support import TINY

from fuzz.words import near, space

SMALL_MODELS = {
    "resnet26": ["model.widths=[2,4,4,8]"],
    "resnet_tiny": ["model.widths=[2,4,4,8]"],
    "vit_small": [
        "model.dim=8",
        "model.heads=2",
        "model.image_size=16",
        "model.patch=8",
        "model.pretrained=false",
    ],
    "vit_tiny": ["model.dim=8", "model.heads=2", "model.image_size=16"],
    "cnn": ["model.conv_channels=[2,4]", "model.hidden=8"],
}
SMALL_DIAGNOSTICS = {
    "none": [],
    "cka": ["diagnostics.images=16", "diagnostics.batch=8"],
    "gradients": ["diagnostics.values=64"],
    "all": ["diagnostics.images=16", "diagnostics.batch=8", "diagnostics.values=64"],
}
DRAWN = ("split", "algorithm", "transform", "local", "server", "uplink", "partition", "capacity")
# Values near the defaults of these are large, or mean files and other machines.
LEFT_ALONE = (
    "_target_",
    "pretrained",
    "path",
    "root",
    "widths",
    "dim",
    "image_size",
    "timm_name",
    "depth",
    "patch",
    "heads",
    "state_dir",
)
WORDS = [word for word in TINY if not word.startswith("model.")]


def mild_line(rng: random.Random) -> list[str]:
    """Draw a command line of one tiny round on one worker."""
    model, seen = rng.choice(sorted(SMALL_MODELS)), rng.choice(sorted(SMALL_DIAGNOSTICS))
    chosen = {
        group: rng.choice([o for o in space().options[group] if o not in ("fixed", "file")])
        for group in DRAWN
    }
    words = [
        *WORDS,
        f"model={model}",
        *SMALL_MODELS[model],
        f"diagnostics={seen}",
        *SMALL_DIAGNOSTICS[seen],
    ]
    words += [f"{group}={option}" for group, option in chosen.items()]
    words += [
        "rounds=1",
        "engine.workers=1",
        "local.batch_size=8",
        f"num_clients={rng.choice((1, 5, 5, 6, 12, 60))}",
    ]
    words += [f"sample_ratio={rng.choice((0.2, 0.5, 1.0))}", f"seed={rng.randrange(100)}"]
    if "min_size" in str(space().defaults) and chosen["partition"] in ("dirichlet", "quantity"):
        words += [f"partition.min_size={rng.choice((1, 2, 5))}", "partition.max_tries=50"]
    if model == "vit_small":
        words.append("model.depth=4")
    words += [
        word
        for word in ("algorithm.allow_adam=true",)
        if chosen["algorithm"] in ("scaffold", "fednova")
    ]
    keys = [
        key
        for key in space().defaults
        if key.split(".")[0] in chosen and key.split(".")[-1] not in LEFT_ALONE
    ]
    return words + [
        f"{key}={near(rng, key)}" for key in rng.sample(keys, rng.choice((0, 0, 1, 1, 2)))
    ]
