"""Record the golden rounds: `python tests/golden/record_rounds.py`. Do so only with a sentence that says why the numbers change."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from support import TINY, TINY_VIT, simulate  # noqa: E402

PATH = Path(__file__).with_name("rounds.json")
CASES = {
    "stage inco": (*TINY, "rounds=4"),
    "stage none uniform": (*TINY, "transform=none", "algorithm.weighting=uniform", "rounds=4"),
    "isolated sgd": (*TINY, "split=isolated", "local=sgd", "rounds=4"),
    "whole algorithm1": (*TINY, "split=none", "transform.rule=algorithm1", "rounds=4"),
    "resampled neither": (*TINY, "capacity=resampled", "transform=neither", "rounds=4"),
    "layer inco vit": (*TINY_VIT, "rounds=4"),
}


def machine() -> str:
    """What decides the last bits on a CPU: torch's version, the instructions that it uses, and the kind of CPU (its caches)."""
    cpu = Path("/proc/cpuinfo")
    facts = dict(line.split(":", 1) for line in cpu.read_text().splitlines() if ":" in line) if cpu.exists() else {}
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    kind = " ".join(facts.get(key, "?") for key in ("vendor_id", "cpu family", "model", "cache size"))
    return f"torch {torch.__version__.split('+')[0]}, {torch.backends.cpu.get_cpu_capability()}, {kind}"


def rounds_of(case: str) -> dict:
    """Run a case and return its losses and the digest of its last weights."""
    torch.set_num_threads(1)
    state, rows, _ = simulate(*CASES[case])
    digest = hashlib.sha256(state.w.numpy().tobytes() + state.b.numpy().tobytes()).hexdigest()
    return {"train/loss": [r["train/loss"] for r in rows], "test/loss": [r["test/loss"] for r in rows], "weights_sha256": digest}


if __name__ == "__main__":
    PATH.write_text(json.dumps({"machine": machine(), "cases": {case: rounds_of(case) for case in CASES}}, indent=1) + "\n")
    print(f"wrote {PATH.name} on {machine()}")
