"""Named stretches of a round.

They cost nothing worth naming until somebody times them (`engine.profile=true`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType


class Times:
    """Seconds and number of the stretches seen, by name.

    `wait`: called at both ends of each, for devices that work asynchronously.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.wait = wait
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count one stretch."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.calls[name] = self.calls.get(name, 0) + 1


_times: Times | None = None


class span:  # a context manager, used like a function
    """`with span("backward"): ...` names a stretch.

    Stretches do not lie within one another, so that they add up to a round.
    """

    __slots__ = ("began", "name")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        if _times is not None:
            _times.wait()
            self.began = perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if _times is not None:
            _times.wait()
            _times.add(self.name, perf_counter() - self.began)


@contextmanager
def timed(times: Times) -> Iterator[Times]:
    """Time all stretches of this process meanwhile."""
    global _times
    _times = times
    try:
        yield times
    finally:
        _times = None
