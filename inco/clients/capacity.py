"""Which client holds which level.

Every assignment is a pure function of (seed, round, client): no table grows with the population.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from math import fsum
from pathlib import Path
from typing import Annotated, Literal, Protocol

from inco.errors import ConfigError
from inco.seeding import numpy_rng
from inco.settings import at_least, checked, many, null_or


class Capacity(Protocol):
    """An assignment of clients to levels 0 (smallest) to L - 1. `levels`: those that clients can
    hold; `moving`: whether a client's level changes from round to round.
    """

    levels: tuple[int, ...]
    moving: bool

    def level(self, client: int, round: int) -> int: ...

    def sizes(self) -> dict[int, float]:
        """Return how many clients of the population hold each level (in expectation, where it
        moves).
        """
        ...


class FiveLevels:
    """Contiguous groups of clients of equal size, smallest level first: client c holds level
    floor(c L / N) (the paper's).
    """

    moving = False

    def __init__(self, *, num_clients: int, num_levels: int, seed: int) -> None:
        if num_clients < num_levels:
            raise ConfigError(
                f"num_clients={num_clients} with capacity=five_levels: the split has {num_levels}"
                f" sizes and each needs a client; use num_clients={num_levels} or more, or fewer"
                " split.levels"
            )
        self.num_clients = num_clients
        self.num_levels = num_levels
        self.levels = tuple(range(num_levels))

    def level(self, client: int, round: int) -> int:
        return client * self.num_levels // self.num_clients

    def sizes(self) -> dict[int, float]:
        starts = [
            -(-level * self.num_clients // self.num_levels) for level in range(self.num_levels + 1)
        ]
        return {level: starts[level + 1] - starts[level] for level in range(self.num_levels)}


class Resampled:
    """Each client of each round draws its level anew."""

    moving = True

    @checked("capacity")
    def __init__(
        self,
        shares: Annotated[
            list[float] | None,
            null_or(many(at_least(0))),
            "probability of each level, smallest first, summing to 1; null: all alike",
        ] = None,
        *,
        num_clients: int,
        num_levels: int,
        seed: int,
    ) -> None:
        shares = list(shares) if shares else [1 / num_levels] * num_levels
        if len(shares) != num_levels or abs(fsum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"capacity.shares={shares}: give {num_levels} probabilities, one a level, that sum"
                " to 1"
            )
        self.shares = [share / fsum(shares) for share in shares]
        self.seed = seed
        self.levels = tuple(level for level, share in enumerate(shares) if share > 0)
        self.num_clients = num_clients

    def level(self, client: int, round: int) -> int:
        return int(
            numpy_rng(self.seed, "capacity", round, client).choice(len(self.shares), p=self.shares)
        )

    def sizes(self) -> dict[int, float]:
        return {level: self.shares[level] * self.num_clients for level in self.levels}


class Fixed:
    """All clients hold one level."""

    moving = False

    @checked("capacity")
    def __init__(
        self,
        which: Annotated[
            Literal["small", "large"],
            "the level of every client. small: the smallest; large: the largest, the whole global"
            " model in the published splits",
        ],
        *,
        num_clients: int,
        num_levels: int,
        seed: int,
    ) -> None:
        self._level = 0 if which == "small" else num_levels - 1
        self.levels = (self._level,)
        self._num_clients = num_clients

    def level(self, client: int, round: int) -> int:
        return self._level

    def sizes(self) -> dict[int, float]:
        return {self._level: self._num_clients}


class Table:
    """Levels from a JSON file. Raises ConfigError where it does not fit the clients and levels."""

    moving = False

    @checked("capacity")
    def __init__(
        self,
        path: Annotated[str, "a JSON list with one level (0 is the smallest) a client"],
        *,
        num_clients: int,
        num_levels: int,
        seed: int,
    ) -> None:
        if not os.path.isfile(path):
            raise ConfigError(f"capacity.path={path}: no such file")
        try:
            levels = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"capacity.path={path}: cannot read it ({error}); give a JSON list with one level a"
                " client"
            ) from error
        if not isinstance(levels, list) or len(levels) != num_clients:
            have = f"{len(levels)} entries" if isinstance(levels, list) else "no list"
            raise ConfigError(
                f"capacity.path={path}: it holds {have}; give a JSON list of"
                f" num_clients={num_clients} levels"
            )
        wrong = [
            (c, v) for c, v in enumerate(levels) if type(v) is not int or not 0 <= v < num_levels
        ]
        if wrong:
            raise ConfigError(
                f"capacity.path={path}: client {wrong[0][0]} has level {wrong[0][1]!r}; levels are"
                f" 0 to {num_levels - 1}"
            )
        empty = sorted(set(range(num_levels)) - set(Counter(levels)))
        if empty:
            raise ConfigError(
                f"capacity.path={path}: no client has level {', '.join(map(str, empty))}; each of"
                f" the split's {num_levels} sizes needs a client, or shorten split.levels"
            )
        self._levels = levels
        self.levels = tuple(range(num_levels))

    def level(self, client: int, round: int) -> int:
        return self._levels[client]

    def sizes(self) -> dict[int, float]:
        return dict(Counter(self._levels))
