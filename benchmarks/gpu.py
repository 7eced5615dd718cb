"""`gpu`: what a GPU makes of the product, in minutes, the most telling first.

A line is printed, and everything kept, as soon as it is known: a machine may be lent for minutes.
What the time does not suffice for is named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.driver import ROOT, Trial, run_trial
from benchmarks.report import Row, keep, number, rows_of, show
from benchmarks.systems import System, product
from benchmarks.workloads import WORKLOADS

MINUTES = 8
ROUNDS_OF_THE_PAPER = 500
SHORTEST_S = 20  # less does not suffice for a start
TESTS = ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests")
SAME = {  # settings whose captured passes have to have the eager bits
    "scalefl": ("split=scalefl",),
    "width": ("split=width", "algorithm=scaffold", "local=sgd", "local.momentum=0"),
}


def main(args: argparse.Namespace) -> list[Row]:
    """Measure, print and keep; on a machine without a GPU, say that it is unmeasured."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: torch sees no GPU here, so this is unmeasured; nothing has been run")
        return []
    return Session(args, torch.cuda.get_device_name(), "cuda", "graph").run()


def timed(device: str, graph: str) -> list[System]:
    """Return what is timed: a round as it is by default beside an eager loop, then precisions,
    launches one by one, and several workers on the one GPU.
    """

    def loop(precision: str) -> System:
        options = {"device": device, "precision": precision}
        return System(f"eager loop {precision}", "benchmarks.systems.floor", 1, options=options)

    precisions = ("tf32", "bf16") if device == "cuda" else ("bf16",)
    return [
        product(1, "fp32", graph),
        loop("fp32"),
        *(product(1, precision, graph) for precision in precisions),
        *(product(1, precision, "eager") for precision in ("fp32", "bf16")),
        *(loop(precision) for precision in precisions),
        *(product(workers, "fp32", graph) for workers in (2, 4)),
    ]


class Session:
    """One call of the benchmark; `graph`: the mode that is held against `eager`."""

    def __init__(self, args: argparse.Namespace, name: str, device: str, graph: str) -> None:
        self._args = args
        self._name = name
        self._device = device
        self._graph = graph
        self._ends = time.monotonic() + 60 * (args.minutes or MINUTES)
        self._began = time.monotonic()
        self._workload = WORKLOADS["gpu"]
        self._settings = self._workload.settings(args.quick, [f"engine.device={device}"])
        self._out: str | None = args.out
        self._lines: list[str] = []
        self._trials: list[Trial] = []
        self._floor = "eager loop fp32"

    def run(self) -> list[Row]:
        """Take every check for which there is time."""
        self._say(f"{self._name}; {self._workload.about}")
        self._test()
        for name, overrides in SAME.items():
            self._hold(name, overrides)
        for system in timed(self._device, self._graph):
            self._time(system)
        rows = rows_of(self._trials, self._floor)
        show(self._name, rows, [f"kept in {self._out}"])
        return rows

    def _say(self, line: str) -> None:
        self._lines.append(f"{time.monotonic() - self._began:4.0f} s  {line}")
        print(self._lines[-1], flush=True)
        facts = {
            "gpu": self._name,
            "settings": self._settings,
            "lines": self._lines,
            "rows": rows_of(self._trials, self._floor),
            "trials": [t.record() for t in self._trials],
        }
        self._out = str(keep("gpu", facts, self._out))

    def _left(self, what: str) -> float:
        """Return the seconds that are left for a check; 0, said, where they do not suffice."""
        left = self._ends - time.monotonic()
        if left < SHORTEST_S:
            self._say(f"{what}: not tried, the time is up (--minutes)")
            return 0
        return left

    def _test(self) -> None:
        left = self._left("pytest -m gpu")
        if not left:
            return
        command = [sys.executable, *TESTS]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=left / 3
            )
        except subprocess.TimeoutExpired:
            self._say(f"pytest -m gpu: not done after {left / 3:.0f} s")
            return
        said = (done.stdout + done.stderr).strip().splitlines()
        for line in said:
            if line.startswith(("FAILED", "ERROR")):
                self._say(line)
        self._say(f"pytest -m gpu: {said[-1] if said else f'exit code {done.returncode}'}")

    def _hold(self, name: str, overrides: Sequence[str]) -> None:
        """Hold the weights of two rounds by captured passes against those by eager ones."""
        left = self._left(f"{name}, captured against eager")
        if not left:
            return
        device = f"engine.device={self._device}"
        settings = self._workload.settings(self._args.quick, [*overrides, device])
        systems = [product(1, "fp32", mode) for mode in (self._graph, "eager")]
        trials = [run_trial(system, settings, 1, timeout=left / 2) for system in systems]
        failed = [trial.failed for trial in trials if trial.failed]
        if failed:
            self._say(f"{name}, captured against eager: {'; '.join(failed)}")
            return
        weights = {trial.rounds[-1].facts["weights_sha256"] for trial in trials}
        bits = "the same bits" if len(weights) == 1 else "OTHER BITS"
        seconds = [number(trial.rounds[-1].seconds) for trial in trials]
        self._say(f"{name}, captured against eager: {bits}; {' and '.join(seconds)} s a round")

    def _time(self, system: System) -> None:
        left = self._left(system.name)
        if not left:
            return
        rounds = self._args.rounds or (1 if self._args.quick else 3)
        trial = run_trial(system, self._settings, rounds, timeout=left)
        self._trials.append(trial)
        self._say(f"{system.name}: {trial.failed or _figures(trial)}")


def _figures(trial: Trial) -> str:
    """Say what a round takes, and by the product's own count how much arithmetic it is (a training
    step is three forward passes).
    """
    best = min(trial.rounds, key=lambda r: r.seconds)
    said = f"{number(best.seconds)} s a round ({number(best.train_s)} + {number(best.eval_s)})"
    minutes = best.seconds * ROUNDS_OF_THE_PAPER / 60
    said += f", {ROUNDS_OF_THE_PAPER} rounds in {number(minutes)} minutes"
    if "flops" in best.facts:
        said += f", {best.facts['flops'] / best.train_s / 1e12:.1f} TFLOP/s in training"
    return said
