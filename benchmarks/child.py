"""One system being measured, in a process of its own: `python -m benchmarks.child`, with the job's
file in the environment.
"""

from __future__ import annotations

import importlib
import os
import sys

from benchmarks.events import Reporter, job


def main() -> None:
    """Run the job's system."""
    order = job()
    sys.stdout.flush()
    os.dup2(2, 1)  # what libraries print is not part of the table
    if order["threads"]:
        import torch

        torch.set_num_threads(order["threads"])
    reporter = Reporter(order["pipe"], silent=int(os.environ.get("RANK", "0")) > 0)
    importlib.import_module(order["module"]).measure(order, reporter)


if __name__ == "__main__":
    main()
