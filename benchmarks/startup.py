"""`startup`: from `python run.py` to the first local step, the second round against the tenth, and
whether memory stays flat.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.driver import ROOT
from benchmarks.machine import MARK, Watch
from benchmarks.report import keep, number, spread

QUICK = (
    "debug=tiny",
    "dataset=synthetic",
    "model.widths=[2,4,4,8]",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=60",
    "dataset.num_test=40",
)


def imports_s(environment: dict[str, str]) -> float:
    """Time starting Python and importing what a run imports."""
    began = time.monotonic()
    code = (
        "import run, inco.assembly, inco.records.record, inco.run.console, inco.records.checkpoint,"
        " wandb"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    return time.monotonic() - began


def one_run(rounds: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run run.py as a user does, and return when its first round began, and the time and the memory
    of each round.
    """
    mark = uuid.uuid4().hex
    env = os.environ | {MARK: mark, "WANDB_MODE": "offline"}
    with tempfile.TemporaryDirectory(prefix="inco-benchmark-") as name:
        folder = Path(name) / "run"
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            f"rounds={rounds}",
            f"hydra.run.dir={folder}",
            *overrides,
        ]
        began = time.monotonic()
        watch = Watch(mark)
        with (Path(name) / "said").open("wb") as said:
            process = subprocess.Popen(
                command, cwd=name, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        rows = []
        for seen, row in _rows(process, folder / "metrics.jsonl"):
            rows.append(
                {
                    "seen_s": seen - began,
                    "round_s": row["time/round_s"],
                    "rss_mb": watch.sample().rss / 2**20,
                }
            )
        if process.wait():
            raise SystemExit(
                f"run.py failed: {(Path(name) / 'said').read_text(errors='replace')[-2000:]}"
            )
    return {
        "first_step_s": rows[0]["seen_s"] - rows[0]["round_s"],
        "rounds": rows,
        "peak_mb": watch.peak_rss / 2**20,
    }


def _rows(process: subprocess.Popen[bytes], path: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield each line of the record, and when it was there, until the run ends."""
    done = 0
    while True:
        ended = process.poll() is not None
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[done:]:
            yield time.monotonic(), json.loads(line)
        done = len(whole)
        if ended:
            return
        time.sleep(0.005)


def summary(runs: Sequence[dict[str, Any]], imports: Sequence[float]) -> dict[str, Any]:
    """Return the figures of some runs: spreads over runs, in seconds and MB."""
    late = [min(9, len(run["rounds"]) - 1) for run in runs]  # the tenth round, or the last
    return {
        "first_step_s": spread([run["first_step_s"] for run in runs]),
        "imports_s": spread(list(imports)),
        "beyond_imports_s": (
            statistics.median(run["first_step_s"] for run in runs) - statistics.median(imports)
        ),
        "second_round_s": spread([run["rounds"][1]["round_s"] for run in runs]),
        "tenth_round_s": spread(
            [run["rounds"][i]["round_s"] for run, i in zip(runs, late, strict=True)]
        ),
        "second_rss_mb": spread([run["rounds"][1]["rss_mb"] for run in runs]),
        "last_rss_mb": spread([run["rounds"][-1]["rss_mb"] for run in runs]),
        "peak_mb": spread([run["peak_mb"] for run in runs]),
    }


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and keep."""
    rounds = args.rounds or (3 if args.quick else 12)
    repeats = args.repeats or (1 if args.quick else 3)
    runs = []
    imports = []
    for _ in range(repeats):
        imports.append(imports_s(dict(os.environ)))
        runs.append(one_run(max(rounds, 2), QUICK if args.quick else ()))
    found = summary(runs, imports)
    place = keep(
        "startup",
        {
            "summary": found,
            "runs": runs,
            "imports_s": imports,
            "rounds": rounds,
            "repeats": repeats,
        },
        args.out,
    )
    _show(found)
    print(f"kept in {place}")
    return found


def _show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="python run.py, from the start", box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("what", "median", "min to max"):
        table.add_column(head, justify="left" if head == "what" else "right")
    for key, value in found.items():
        words = key.removesuffix("_s").removesuffix("_mb").replace("_", " ") + (
            ", MB" if key.endswith("_mb") else ", s"
        )
        if isinstance(value, dict):
            table.add_row(
                words, number(value["median"]), f"{number(value['min'])} to {number(value['max'])}"
            )
        else:
            table.add_row(words, number(value), "")
    Console(highlight=False).print(table)
