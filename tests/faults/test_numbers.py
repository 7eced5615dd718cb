"""R10, R26: numbers that are not finite, and clients with hardly any examples."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import TINY, read_rows, simulate

from faults.sitting import last_checkpoint, mine, same_end, sit
from inco.assembly import assemble
from inco.errors import ConfigError, DataError, NumericError
from inco.records.checkpoint import Checkpoints
from inco.server.sums import RoundSums
from inco.server.transforms import Identity

pytestmark = pytest.mark.full

__all__ = ["mine"]  # a fixture


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e38"])
def test_r10_an_upload_that_is_not_finite_stops_the_run(
    tmp_path: Path, mine: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is added to anything: the message names the client and the tensor, the checkpoint
    is that of the round before.
    """
    monkeypatch.setenv("MINE_VALUE", value)
    with pytest.raises(
        NumericError,
        match=(
            r"round 2, client 3: its upload 'delta' has 1 of \d+ values of fc\.\w+ \(first:"
            r" .*nonfinite=skip"
        ),
    ) as told:
        sit(tmp_path / "run", f"{mine}NotFinite", rounds=3)
    assert told.value.exit_code == 4 and len(read_rows(tmp_path / "run")) == 1
    assert last_checkpoint(tmp_path / "run").name == "round_000001"
    sit(tmp_path / "one", rounds=1)
    kept, right = (
        Checkpoints(tmp_path / "run").load_latest(),
        Checkpoints(tmp_path / "one").load_latest(),
    )
    assert (
        kept is not None
        and right is not None
        and all(torch.equal(t, right.tensors[n]) for n, t in kept.tensors.items())
    )


def test_r10_or_the_client_is_left_out_and_counted(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it: what it had sent reaches no weight."""
    for value in ("nan", "inf"):
        monkeypatch.setenv("MINE_VALUE", value)
        sit(tmp_path / value, f"{mine}NotFinite", "uplink.nonfinite=skip", rounds=3)
        assert [row.get("client/nonfinite") for row in read_rows(tmp_path / value)] == [
            None,
            1,
            None,
        ]
        saved = Checkpoints(tmp_path / value).load_latest()
        assert saved is not None and all(
            torch.isfinite(t.float()).all() for t in saved.tensors.values()
        )
    same_end(tmp_path / "nan", tmp_path / "inf")


def test_r10_an_update_that_is_not_finite_is_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All uploads are finite, and what the server makes of them is not."""
    monkeypatch.setattr(
        Identity, "__call__", lambda self, update, generator: (update * float("inf"), {})
    )
    with pytest.raises(
        NumericError, match=r"round 1: the update's norm is (nan|inf); it has not been applied"
    ):
        sit(tmp_path / "run", "transform=none", rounds=2)
    assert (
        not (tmp_path / "run" / "checkpoint").exists()
        and not (tmp_path / "run" / "metrics.jsonl").exists()
    )


def test_r10_looking_costs_less_than_a_hundredth_of_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look, spent = RoundSums._check, [0.0]

    def timed(sums: RoundSums, result: object, held: object) -> None:
        began = time.perf_counter()
        look(sums, result, held)  # type: ignore[arg-type]
        spent[0] += time.perf_counter() - began

    monkeypatch.setattr(RoundSums, "_check", timed)
    shares = []
    for _ in range(3):
        spent[0] = 0.0
        _, rows, _ = simulate("tracker=none", "engine.workers=1", "transform=none", rounds=1)
        shares.append(spent[0] / rows[0]["time/round_s"])
        if shares[-1] < 0.01:
            break
    assert 0 < min(shares) < 0.01, shares


def partition(folder: Path, clients: list[list[int]]) -> str:
    path = folder / "p.json"
    path.write_text(json.dumps({str(client): held for client, held in enumerate(clients)}))
    return f"partition.path={path}"


def test_r26_a_short_batch_is_trained_on_and_every_test_image_is_scored(tmp_path: Path) -> None:
    """Clients with 3 examples of a batch of 8, and with examples of one class alone. 41 images,
    which no batch divides.
    """
    words = [
        *TINY,
        "dataset.num_test=41",
        "engine.workers=1",
        "partition=fixed",
        "transform=none",
        "split=none",
    ]
    labels = simulate(*words[:-4], rounds=1)[2].dataset.train.labels.numpy()
    alone = np.flatnonzero(labels == 1)[:10].tolist()
    rest = [i for i in range(60) if i not in alone]
    clients = [rest[:3], alone, rest[3:20], rest[20:30], rest[30:]]
    _, rows, run = simulate(*words, partition(tmp_path, clients), rounds=2)
    engine = run.simulator.engine
    assert [engine.trainer.steps(size) for size in (3, 8, 10, 18)] == [
        1,
        1,
        2,
        3,
    ], "the last batch is whatever is left"
    assert all(
        math.isfinite(row["train/loss"])
        and math.isfinite(row["test/loss"])
        and row["update/norm"] > 0
        for row in rows
    )
    state = run.simulator.start(0)
    scores = engine.evaluate(run.simulator.population.submodels(1), state.w, state.b, 1)
    assert {score.count for score in scores.values()} == {41}


def test_r26_an_empty_client_is_an_error_when_the_data_are_dealt(tmp_path: Path) -> None:
    words = [*TINY, "engine.workers=1", "partition=fixed"]
    with pytest.raises(DataError, match="client 2 holds no examples"):
        simulate(*words, partition(tmp_path, [[0, 1], [2, 3], [], [4, 5], [6, 7]]))
    with pytest.raises(ConfigError, match="client 1 holds 1 example"):
        simulate(*words, partition(tmp_path, [[0, 1], [2], [3, 8], [4, 5], [6, 7]]))


def test_r26_the_bundled_test_set_is_scored_in_full() -> None:
    from support import settings_of

    from inco.engine.ranks import Ranks

    run = assemble(
        settings_of("tracker=none", "engine.workers=1"), Ranks(0, 1, torch.device("cpu"))
    )
    state = run.simulator.start(0)
    scores = run.simulator.engine.evaluate(
        run.simulator.population.submodels(1), state.w, state.b, 1
    )
    assert {score.count for score in scores.values()} == {360} == {len(run.dataset.test.labels)}
