"""A saved layout of charts for a W&B project: `python -m inco.tracker.workspace ENTITY`. Needs the
extra `workspace`, a key and the server.

Sections for accuracy, loss, similarity, InCo, updates and cost, each chart over rounds, runs
grouped by their setting without the seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

CHARTS = (  # section, title, and metrics as a regular expression
    ("Accuracy", "Mean over capacities (%)", "test/acc"),
    ("Accuracy", "By capacity (%)", "test/acc/.*"),
    ("Loss", "Training", "train/loss"),
    ("Loss", "Test", "test/loss"),
    ("Similarity (CKA)", "Mean over pairs, by layer", "cka/layer.*|cka/blocks.*"),
    ("InCo", "theta, by layer", "inco/theta/.*"),
    ("InCo", "Kernels with beta > 0 (%), by layer", "inco/beta_positive/.*"),
    ("Updates", "Norm of what is added", "update/norm"),
    ("Updates", "Norm by layer", "gradients/norm/.*"),
    ("Cost", "Bytes up", "comm/up_bytes"),
    ("Cost", "FLOP", "compute/flops"),
    ("Cost", "Seconds a round", "time/(train|eval|round)_s"),
)
PICTURES = ("cka", "gradients", "partition")


def workspace(entity: str, project: str, name: str) -> Any:
    """Return the layout, not saved yet."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    panels: dict[str, list[Any]] = {}
    for section, title, metrics in CHARTS:
        plot = reports.LinePlot(
            title=title, x="round", metric_regex=f"^({metrics})$", groupby="group"
        )
        panels.setdefault(section, []).append(plot)
    sections = [
        workspaces.Section(name=section, is_open=True, panels=plots)
        for section, plots in panels.items()
    ]
    pictures: list[Any] = [reports.MediaBrowser(title=key, media_keys=[key]) for key in PICTURES]
    sections.append(workspaces.Section(name="Pictures", panels=pictures))
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Save the layout and print its address."""
    parser = argparse.ArgumentParser(prog="python -m inco.tracker.workspace", description=__doc__)
    parser.add_argument("entity", help="W&B user or team")
    parser.add_argument("--project", default="inco", help="W&B project (default: inco)")
    parser.add_argument("--name", default="InCo", help="name of the layout (default: InCo)")
    asked = parser.parse_args(argv)
    try:
        made = workspace(asked.entity, asked.project, asked.name)
    except ImportError:
        print('wandb_workspaces is not installed: pip install "inco[workspace]"', file=sys.stderr)
        return 2
    try:
        print(made.save().url)
    except Exception as error:  # no key, no network, no right to save there
        print(
            f"the layout was not saved: {type(error).__name__}: {error}; check wandb login, the"
            " entity and the network",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
