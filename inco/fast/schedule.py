"""Who does what: tasks of known cost, spread over workers."""

from __future__ import annotations

from collections.abc import Sequence


def assign(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Spread tasks over workers, longest first to the least loaded (Graham 1969). Returns each
    worker's positions.

    A pure function of the costs, so that every rank knows the whole plan.
    """
    plan: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for position in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(workers), key=lambda k: (load[k], k))
        plan[least].append(position)
        load[least] += costs[position]
    return plan
