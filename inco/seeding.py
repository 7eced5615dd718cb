"""Random streams by name. No draw depends on the order, the place or the number of any other draw.

Every stream is named by the run's seed, a purpose and a path of integers (round, client, ...), so a
result depends on the configuration and the seed alone: never on worker count, completion order or
restarts.
"""

import hashlib

import numpy as np
import torch


def seed_for(seed: int, purpose: str, *path: int) -> int:
    """Return a 63-bit seed for the stream `purpose` at `path`, e.g.

    `seed_for(0, "shuffle", round, client)`.
    """
    name = "/".join([str(seed), purpose, *map(str, path)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, purpose: str, *path: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh torch generator for the stream."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, purpose, *path))


def numpy_rng(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """Return a fresh NumPy generator for the stream."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, purpose, *path)))


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator that dropout draws from on a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
