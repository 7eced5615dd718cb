"""Curves of groups: the mean over seeds, and a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inco.records.groups import Group, Spread, spread
from inco.records.runs import Run
from inco.report.curves import Chart, Curve, kept


def band(name: str, caption: str, groups: Sequence[Group], key: str, **more: Any) -> Chart | None:
    """Return a chart of a metric, one curve a group: its mean in the rounds that all of the group's
    counted runs have.
    """
    found = [(one, over_seeds(one.counted, key)) for one in groups]
    there = [(one, by_round) for one, by_round in found if by_round]
    every = sorted({round for _, by_round in there for round in by_round})
    if not every:
        return None
    x = [every[k] for k in kept(len(every), 3 * len(there))]
    curves = []
    for k, (one, by_round) in enumerate(there):
        at = [by_round.get(round, Spread(None, None, 0)) for round in x]
        means = [point.mean for point in at]
        sds = [point.sd for point in at]
        known = any(sd is not None for sd in sds)
        curves.append(Curve(one.label, means, style=k, spread=sds if known else None))
    return Chart(name, caption, x, curves, **more)


def over_seeds(runs: Sequence[Run], key: str) -> dict[int, Spread]:
    """Return mean and standard deviation over runs, by round, of the rounds that all of them
    have.
    """
    series = [
        {row["round"]: row[key] for row in run.rows if row.get(key) is not None} for run in runs
    ]
    shared = set.intersection(*(set(one) for one in series)) if series else set()
    return {round: spread([one[round] for one in series]) for round in sorted(shared)}
