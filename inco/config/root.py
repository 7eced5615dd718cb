"""The settings that belong to no class: those of a run, and of where it trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from inco.engine.workers import under_torchrun
from inco.settings import COUNT, INTEGER_OR_AUTO, at_least, between, null_or, one_of


@dataclass(frozen=True)
class Root:
    """The top-level settings."""

    seed: Annotated[int, at_least(0), "every random draw of the run follows from it"]
    rounds: Annotated[int, COUNT, "communication rounds in all; raise it and the same run goes on"]
    num_clients: Annotated[int, COUNT, "population N"]
    sample_ratio: Annotated[
        float, between(0, 1, open_low=True), "share of the population that trains in a round"
    ]
    eval_every: Annotated[
        int,
        COUNT,
        "rounds between two scorings of the whole test set; the last round is always scored",
    ]
    checkpoint_every: Annotated[
        int, COUNT, "rounds between two checkpoints; the last round is always saved"
    ]
    name: Annotated[
        str,
        "the run's folder below outputs/; by itself: the choices, the seed and a digest of the"
        " settings",
    ]
    fresh: Annotated[bool, "delete this run's record and start over"]
    scale: Annotated[
        str | None,
        null_or(one_of("paper", "mini")),
        "of the paper's experiments (experiment=table..., figure...): as published, or for two"
        " cores in under an hour a table",
    ]


@dataclass(frozen=True)
class Engine:
    """Where a run trains. Nothing here changes a result."""

    workers: Annotated[
        Any,
        INTEGER_OR_AUTO,
        "worker processes on this machine; auto: one per GPU, or one per core, and no more than"
        " clients a round",
    ]
    device: Annotated[Literal["auto", "cpu", "cuda"], "what trains; auto: GPUs where there are any"]
    gpus: Annotated[
        int | None,
        null_or(COUNT),
        "GPUs that the run takes for itself, and waits for, out of those that no other run has so"
        " taken; null: all that are visible",
    ]
    mode: Annotated[
        Literal["auto", "eager", "graph"],
        "graph: forward and backward of a full batch as one CUDA graph; auto: graph on a GPU,"
        " eager on a CPU",
    ]
    retry: Annotated[
        int,
        at_least(0),
        "times to start the workers again, and go on from the last checkpoint, after one has"
        " failed or died",
    ]
    profile: Annotated[
        bool,
        "say in profile.txt where the second round of a session spends its time, and on what"
        " operations the third",
    ]
    state_dir: Annotated[
        str | None,
        "folder for clients' own vectors (control variates, previous models), which every worker"
        " must see; null: the run's folder",
    ]

    state_memory: Annotated[
        float,
        at_least(0),
        "GiB of clients' own vectors that each worker keeps in memory, beside their files; 0: it"
        " reads them from the files",
    ]

    def conflicts(self) -> Iterator[str]:
        """Yield what is wrong between these settings, and with torchrun."""
        if self.mode == "graph" and self.device == "cpu":
            fix = "CUDA graphs need a GPU; use engine.mode=auto"
            yield f"engine.mode=graph with engine.device=cpu: {fix}"
        if self.gpus is None:
            return
        asked = f"engine.gpus={self.gpus}"
        if self.device == "cpu":
            fix = "leave engine.gpus=null, or use engine.device=auto"
            yield f"{asked} with engine.device=cpu: a run on the CPU takes no GPU; {fix}"
        if self.workers != "auto" and self.workers < self.gpus:
            fix = f"a GPU without a worker is idle; use engine.gpus={self.workers}"
            yield f"{asked} with engine.workers={self.workers}: {fix}"
        if under_torchrun():
            fix = "leave engine.gpus=null, and give it CUDA_VISIBLE_DEVICES"
            yield f"{asked} under torchrun: it starts the ranks, not InCo; {fix}"
