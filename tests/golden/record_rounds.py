"""Record the golden rounds of this machine: `python tests/golden/record_rounds.py`.

Do so on a machine that has no record yet, or with a sentence that says why the numbers change.
Records of other machines stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from support import TINY, TINY_VIT, simulate  # noqa: E402

from inco.machine import arithmetic  # noqa: E402

PATH = Path(__file__).with_name("rounds.json")
CASES = {
    "stage inco": (*TINY, "rounds=4"),
    "stage none uniform": (*TINY, "transform=none", "algorithm.weighting=uniform", "rounds=4"),
    "isolated sgd": (*TINY, "split=isolated", "local=sgd", "rounds=4"),
    "whole algorithm1": (*TINY, "split=none", "transform.rule=algorithm1", "rounds=4"),
    "resampled neither": (*TINY, "capacity=resampled", "transform=neither", "rounds=4"),
    "layer inco vit": (*TINY_VIT, "rounds=4"),
    "quickstart": ("experiment=quickstart", "tracker=none", "engine.workers=1", "rounds=3"),
}
KEYS = ("train/loss", "test/loss", "test/acc", "update/norm", "comm/up_bytes", "compute/flops")


def rounds_of(case: str) -> dict[str, Any]:
    """Run a case and return what its rounds measured, and the digest of its last weights."""
    torch.set_num_threads(1)
    state, rows, _ = simulate(*CASES[case])
    digest = hashlib.sha256(state.w.numpy().tobytes() + state.b.numpy().tobytes()).hexdigest()
    return {key: [row[key] for row in rows] for key in KEYS} | {"weights_sha256": digest}


def records() -> dict[str, dict[str, Any]]:
    """Return the golden rounds by machine and case."""
    return json.loads(PATH.read_text())


if __name__ == "__main__":
    PATH.write_text(
        json.dumps(records() | {arithmetic(): {case: rounds_of(case) for case in CASES}}, indent=1)
        + "\n"
    )
    print(f"wrote {PATH.name} on {arithmetic()}")
