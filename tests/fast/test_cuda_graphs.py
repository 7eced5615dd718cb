"""Captured passes: with a capture that plainly runs the work again, training has the bits of the
eager loop; CUDA's own needs a GPU.
"""

from __future__ import annotations

import pytest
import torch
from support import TINY, settings_of, timeless

import inco.assembly as wiring
from inco.callbacks import EachRound
from inco.config.validate import validate
from inco.engine.device import configure
from inco.engine.ranks import Ranks
from inco.errors import ConfigError, WorkerError
from inco.fast.cuda_graphs import CapturedPasses, Replay


def again(work: Replay) -> Replay:
    """What a capture does on a CPU: warm up, and run the work anew each time."""
    work()
    return work


def run(passes: bool, *overrides: str, rounds: int = 2):
    """A run's last state, its rows, and how many passes were captured and replayed."""
    counted = {"captured": 0, "replayed": 0}

    def capture(work: Replay) -> Replay:
        counted["captured"] += 1
        replay = again(work)

        def count() -> None:
            counted["replayed"] += 1
            replay()

        return count

    settings = settings_of(*TINY, *overrides)
    assembly = wiring.assemble(settings, Ranks(0, 1, torch.device("cpu")))
    if passes:
        assembly.simulator.engine.trainer.passes = CapturedPasses(
            settings["local"]["batch_size"], settings["local"]["precision"], capture
        )
    state, rows = assembly.simulator.start(0), []
    assembly.simulator.run(state, rounds, [EachRound(lambda state, metrics: rows.append(metrics))])
    return state, timeless(rows), counted


@pytest.mark.parametrize(
    "more",
    [
        "split=stage",
        pytest.param("split=stage local=sgd local.max_grad_norm=0.5", marks=pytest.mark.full),
        pytest.param(
            "split=width partition=labels partition.classes_per_client=2", marks=pytest.mark.full
        ),
        pytest.param("split=rolling", marks=pytest.mark.full),
        "split=scalefl split.start=2",
        pytest.param("algorithm=scaffold local=sgd local.momentum=0", marks=pytest.mark.full),
        "algorithm=fedprox local.precision=bf16",
        pytest.param("split=stage local.drop_last=true", marks=pytest.mark.full),
    ],
)
def test_same_bits_as_the_eager_loop(more: str) -> None:
    """12 examples a client and batches of 8: a captured one, and a short one that is not."""
    eager, rows, _ = run(False, *more.split())
    captured, others, counted = run(True, *more.split())
    assert torch.equal(eager.w, captured.w) and torch.equal(eager.b, captured.b) and rows == others
    levels = 4 if "scalefl" in more else 5
    phases = 2 if "scalefl" in more else 1
    assert counted["captured"] == levels * phases and counted["replayed"] >= 10


def test_a_method_that_adds_to_the_loss_takes_the_eager_pass() -> None:
    _, _, counted = run(True, "algorithm=moon")
    assert counted == {"captured": 0, "replayed": 0}


def fails(work: Replay) -> Replay:
    """A capture that is refused after it has warmed up."""
    work()
    torch.rand(3)  # as dropout's draws would
    raise RuntimeError("operation not permitted when stream is capturing")


def training(required: bool):
    """A run whose passes cannot be captured."""
    settings = settings_of(*TINY, "split=stage")
    assembly = wiring.assemble(settings, Ranks(0, 1, torch.device("cpu")))
    size, precision = settings["local"]["batch_size"], settings["local"]["precision"]
    assembly.trainer.passes = CapturedPasses(size, precision, fails, required)
    return assembly


def test_what_cannot_be_captured_is_taken_eagerly_with_one_warning_a_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    eager, _, _ = run(False, "split=stage")
    assembly = training(required=False)
    state = assembly.simulator.start(0)
    assembly.simulator.run(state, 2, ())
    assert torch.equal(eager.w, state.w) and torch.equal(eager.b, state.b)
    said = [r.getMessage() for r in caplog.records if "cannot be captured" in r.getMessage()]
    assert len(said) == 5 and all("not permitted when stream is capturing" in s for s in said)


def test_engine_mode_graph_does_not_fall_back() -> None:
    assembly = training(required=True)
    with pytest.raises(WorkerError, match="not permitted when stream is capturing"):
        assembly.simulator.round(assembly.simulator.start(0))


def test_capturing_leaves_the_stream_of_dropout_as_it_was() -> None:
    """Else the client that meets a new level first would draw other masks, by worker count."""

    def drawing(work: Replay) -> Replay:
        work()
        torch.rand(5)
        return work

    assembly = training(required=False)
    trainer = assembly.trainer
    trainer.passes = CapturedPasses(trainer.local.batch_size, "fp32", drawing)
    start = assembly.simulator.start(0)
    task = assembly.simulator.population.tasks(1)[0]
    after = []
    for _ in range(2):  # captured in the first, replayed in the second
        trainer(task, assembly.split.submodel(task.level, 1), start.w, start.b, {})
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_graphs_without_a_gpu_are_refused() -> None:
    assert "engine.mode=graph" in validate(settings_of("engine.mode=graph", "engine.device=cpu"))[0]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"engine\.mode=graph without a GPU"):
            wiring.assemble(
                settings_of(*TINY, "engine.mode=graph"), Ranks(0, 1, torch.device("cpu"))
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("split", ["stage", "width", "scalefl"])
def test_cuda_graphs_have_the_eager_bits(split: str) -> None:
    device = torch.device("cuda", 0)
    configure(device)
    states = []
    for mode in ("eager", "graph"):
        assembly = wiring.assemble(
            settings_of(*TINY, f"split={split}", f"engine.mode={mode}"), Ranks(0, 1, device)
        )
        state = assembly.simulator.start(0)
        assembly.simulator.run(state, 2, ())
        states.append(state)
    assert torch.equal(states[0].w, states[1].w)
