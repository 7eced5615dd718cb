"""Clients' own vectors between their rounds: which file a round reads, bit for bit what was
written, in which coordinates, which files may go, and errors that name the file.
"""

import errno
import gc
import os
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inco.clients.store import ClientStore, State
from inco.errors import StorageError
from inco.flat import Layout, Slice
from inco.types import ClientTask, SubModel

P, B = 20, 8


def no_model() -> torch.nn.Module:
    raise AssertionError("a store builds no model")


def sub_model(level: int, params: Tensor, buffers: Tensor) -> SubModel:
    slices = [
        Slice(Layout.of({"x": torch.zeros(len(index))}), index) for index in (params, buffers)
    ]
    return SubModel(level, f"size{level}", no_model, *slices)


SUBS = {
    0: sub_model(0, torch.arange(2, 9), torch.arange(3)),
    1: sub_model(1, torch.tensor([11, 3, 4, 0, 19, 8]), torch.tensor([6, 2, 0, 1])),
    2: sub_model(2, torch.arange(P), torch.arange(B)),
}


def task(client: int, round: int, level: int = 0) -> ClientTask:
    return ClientTask(client, round, level, torch.arange(1))


def state(round: int, level: int = 0) -> State:
    """A state that tells its round."""
    stream = torch.Generator().manual_seed(round)
    sub = SUBS[level]
    control, buffers = (
        torch.randn(len(part.index), generator=stream) + round for part in (sub.params, sub.buffers)
    )
    return {"control": control, "buffers": buffers, "count": torch.tensor([float(round)])}


def same(found: State | None, expected: Mapping[str, Tensor]) -> bool:
    """Names, types and bits."""
    bits = [
        {n: (t.dtype, t.numpy().tobytes()) for n, t in (s or {}).items()} for s in (found, expected)
    ]
    return found is not None and bits[0] == bits[1]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=[0, 1 << 20], ids=["from files", "from memory"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> ClientStore:
    return ClientStore(str(tmp_path), False, P, B, memory=request.param)


def play(store: ClientStore, cohorts: Sequence[Sequence[int]], level: int = 0) -> None:
    """Rounds 1, 2, ... with these clients, each of which saves a state that tells its round."""
    for round, clients in enumerate(cohorts, 1):
        for client in clients:
            store.save(task(client, round, level), SUBS[level], state(round, level))
        store.advance(round, clients)
    store.flush()


def told(folder: Path, cohorts: Sequence[Sequence[int]], moving: bool = False) -> ClientStore:
    """A new store on an old folder: a run that goes on."""
    store = ClientStore(str(folder), moving, P, B)
    for round, clients in enumerate(cohorts, 1):
        store.advance(round, clients)
    return store


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("level", SUBS)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, moving: bool, level: int) -> None:
    store, sub = ClientStore(str(tmp_path), moving, P, B), SUBS[level]
    odd = torch.tensor([-0.0, float("inf"), float("nan"), 1e-45, -3.4e38, 0.1, 7.0])
    size, stats = len(sub.params.index), len(sub.buffers.index)
    saved = {
        "a": odd.repeat(3)[:size],
        "double": torch.linspace(0, 1, size).double(),
        "buffers": odd.repeat(2)[-stats:],
    }
    saved |= {"number": torch.tensor([1 / 3]), "none": torch.empty(0)}
    store.save(task(4, 1, level), sub, saved)
    store.advance(1, [4])
    assert same(store.load(task(4, 2, level), sub), saved)
    assert same(store.load(task(4, 900, level), sub), saved), "however long the client stays away"


def test_states_are_kept_apart(store: ClientStore) -> None:
    """Clients of neighbouring folders and numbers of many digits; a client that has never taken
    part has no state.
    """
    clients = [0, 1, 999, 1000, 1001, 12_345_678]
    for client in clients:
        store.save(task(client, 1), SUBS[0], {"a": torch.full((7,), float(client))})
    store.advance(1, clients)
    assert [store.load(task(c, 2), SUBS[0])["a"][0].item() for c in clients] == clients  # type: ignore[index]
    assert store.load(task(2, 2), SUBS[0]) is None
    store.flush()
    assert len(files(store.folder)) == len(clients)


def test_a_loaded_state_is_the_callers_own(store: ClientStore) -> None:
    """Algorithms write into it; neither the file nor the next to load sees that.

    Views are saved as what they show.
    """
    table = torch.arange(28.0).view(7, 4)
    store.save(task(3, 1), SUBS[0], {"a": table[:, 1], "b": table[:, 2].requires_grad_()})
    store.advance(1, [3])
    first = store.load(task(3, 2), SUBS[0])
    assert first is not None and same(
        first, {"a": table[:, 1].contiguous(), "b": table[:, 2].detach().contiguous()}
    )
    first["a"].zero_()
    again = store.load(task(3, 2), SUBS[0])
    assert (
        again is not None
        and again["a"].tolist() == table[:, 1].tolist()
        and not again["b"].requires_grad
    )


def test_a_state_counts_when_its_round_has_succeeded(store: ClientStore) -> None:
    """A failed round's file is read by nobody, not by the round played again either, and that
    round's file takes its place.
    """
    store.save(task(5, 1), SUBS[0], state(1))
    assert store.load(task(5, 2), SUBS[0]) is None
    store.advance(1, [5])
    store.save(task(5, 2), SUBS[0], state(99))
    store.flush()
    assert len(files(store.folder)) == 2
    assert all(same(store.load(task(5, r), SUBS[0]), state(1)) for r in (2, 3))
    store.save(task(5, 2), SUBS[0], state(2))
    store.advance(2, [5])
    assert same(store.load(task(5, 3), SUBS[0]), state(2))
    store.flush()
    assert len(files(store.folder)) == 2


def test_the_task_says_which_state(store: ClientStore) -> None:
    """The last round before the task's own, although newer files lie there, and whatever their
    times say.
    """
    play(store, [[1], [], [1, 2], [2], [1]])
    for path in files(store.folder):
        os.utime(path, (10**9 - int(path.suffix[2:]),) * 2)  # the oldest state is the newest file
    for round, last in ((2, 1), (3, 1), (4, 3), (5, 3), (6, 5), (50, 5)):
        assert same(store.load(task(1, round), SUBS[0]), state(last)), round
    assert store.load(task(1, 1), SUBS[0]) is None and same(
        store.load(task(2, 4), SUBS[0]), state(3)
    )


def test_cohorts_are_all_that_a_new_store_needs(store: ClientStore) -> None:
    """A run that goes on after round 3 of 5 reads what round 4 read, not the later files; one after
    the last reads all alike.
    """
    cohorts = [[0, 1], [1, 2], [0, 2], [0, 1], [1]]
    play(store, cohorts)
    assert told(store.folder, []).load(task(0, 4), SUBS[0]) is None, "files alone say nothing"
    again = told(store.folder, cohorts[:3])
    for client, last in ((0, 3), (1, 2), (2, 3)):
        assert same(again.load(task(client, 4), SUBS[0]), state(last)) and same(
            again.load(task(client, 9), SUBS[0]), state(last)
        )
    for client, round in product(range(3), range(1, 9)):
        mine, other = (
            s.load(task(client, round), SUBS[0]) for s in (told(store.folder, cohorts), store)
        )
        assert mine is None if other is None else same(mine, other)


def readable(rounds: Sequence[int], checkpoint: int) -> set[int]:
    """Of a client's rounds, those whose state the next rounds after a checkpoint would read, one
    after the other.
    """
    return {
        max(r for r in rounds if r < q)
        for q in range(checkpoint + 1, 40)
        if any(r < q for r in rounds)
    }


COHORTS = st.lists(st.lists(st.integers(0, 3), unique=True), min_size=1, max_size=10)


@settings(max_examples=120, deadline=None)
@given(COHORTS, st.lists(st.integers(0, 12), max_size=3), st.booleans())
def test_pruning_keeps_what_can_be_read_and_nothing_else(
    cohorts: list[list[int]], oldest: list[int], late: bool
) -> None:
    """`oldest` is the round of the oldest checkpoint: the first round after it is the earliest that
    is ever played again. Checkpoints move on, so it grows; a store that is told the cohorts once
    some files are gone finds and prunes the same ones.
    """
    store = ClientStore(None, False, P, B)
    play(store, cohorts)
    rounds = {c: [r for r, clients in enumerate(cohorts, 1) if c in clients] for c in range(4)}
    for checkpoint in sorted(oldest):
        pruning = told(store.folder, cohorts) if late else store
        pruning.prune(checkpoint)
        kept = {(int(path.stem), int(path.suffix[2:])) for path in files(store.folder)}
        assert kept == {(c, r) for c, mine in rounds.items() for r in readable(mine, checkpoint)}
        pruning.sync()
        for client, mine in rounds.items():
            for q in range(checkpoint + 1, len(cohorts) + 3):
                before = [r for r in mine if r < q]
                found = pruning.load(task(client, q), SUBS[0])
                assert same(found, state(before[-1])) if before else found is None


def test_memory_is_bounded_and_files_hold_the_rest(tmp_path: Path) -> None:
    """Room for three states: the three used last are not read, and of the others every bit is as
    it was saved.
    """
    size = sum(t.nbytes for t in state(1).values())
    store = ClientStore(str(tmp_path), False, P, B, memory=3 * size)
    play(store, [[1], [2], [3], [4], [5]])
    read: list[str] = []
    from_file = store._read
    store._read = lambda path: read.append(path.name) or from_file(path)  # type: ignore[method-assign,func-returns-value]
    for client, hits in ((5, 0), (3, 0), (1, 1), (5, 1), (3, 1), (4, 2), (5, 2), (3, 2), (1, 3)):
        assert same(store.load(task(client, 9), SUBS[0]), state(client))
        assert len(read) == hits, client
    assert store._recent._held == 3 * size


def test_what_waits_to_be_written_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is slower than training holds the run up before memory fills."""
    store = ClientStore(str(tmp_path), False, P, B)
    size = sum(t.nbytes for t in state(1).values())
    monkeypatch.setattr("inco.clients.store._WAITING", 2 * size)
    go = threading.Event()
    write = store._write
    store._write = lambda task, state: (go.wait(), write(task, state))  # type: ignore[method-assign,assignment,return-value]
    for client in (1, 2):
        store.save(task(client, 1), SUBS[0], state(client))
    assert not files(tmp_path), "behind the training"
    threading.Timer(0.3, go.set).start()
    began = time.monotonic()
    store.save(task(3, 1), SUBS[0], state(3))
    assert time.monotonic() - began > 0.2
    store.flush()
    assert len(files(tmp_path)) == 3


def damage(path: Path, how: str | int) -> None:
    data = path.read_bytes()
    if isinstance(how, int):  # one bit, so many percent into the file
        at = how * len(data) // 100
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": data[:-1],
                "half": data[: len(data) // 2],
                "short": data[:31],
                "empty": b"",
                "longer": data + b"x",
            }[how]
        )


@pytest.mark.parametrize(
    "how", ["cut", "half", "short", "empty", "longer", "gone", *range(0, 100, 9), 99]
)
@pytest.mark.parametrize("moving", [False, True])
def test_damage_is_told_with_the_file(tmp_path: Path, how: str | int, moving: bool) -> None:
    """On reading; and where a state is written into the former one's coordinates, on writing as
    well, which then leaves nothing.
    """
    play(ClientStore(str(tmp_path), moving, P, B), [[1]])
    (path,) = files(tmp_path)
    damage(path, how)
    store = told(tmp_path, [[1]], moving)
    text = rf"is {'missing' if how == 'gone' else 'damaged'}: {path}.*start over with fresh=true"
    with pytest.raises(StorageError, match=text):
        store.load(task(1, 2), SUBS[0])
    if moving:
        with pytest.raises(StorageError, match=text):
            store.save(task(1, 2), SUBS[0], state(2))
        assert files(tmp_path) <= {path}


def test_a_full_disk_leaves_the_former_state(
    store: ClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(store, [[1]])

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    text = (
        rf"engine\.state_dir={store.folder}: cannot write client 1's state .*No space left.*free"
        r" some"
    )
    with monkeypatch.context() as patched, pytest.raises(StorageError, match=text):
        patched.setattr("os.replace", full)
        store.save(task(1, 2), SUBS[0], state(2))
        store.flush()
    assert len(files(store.folder)) == 1 and same(store.load(task(1, 2), SUBS[0]), state(1))


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"engine\.state_dir=.*file: cannot write client 1's state"
    ):
        store = ClientStore(str(tmp_path / "file"), False, P, B)
        store.save(task(1, 1), SUBS[0], state(1))
        store.flush()


@pytest.mark.full
def test_a_folder_of_its_own_goes_with_the_store(tmp_path: Path) -> None:
    stores = [
        ClientStore(folder, False, P, B) for folder in (None, None, str(tmp_path / "a" / "b"))
    ]
    for store in stores:
        play(store, [[1], [2]])
        store.sync()
    own, other, given = (store.folder for store in stores)
    assert [len(files(folder)) for folder in {own, other, given}] == [2, 2, 2]
    del store, stores[0], stores[1]
    gc.collect()
    assert not own.exists() and other.exists() and len(files(given)) == 2


def test_fixed_clients_keep_their_own_coordinates(tmp_path: Path) -> None:
    for moving in (False, True):
        play(ClientStore(str(tmp_path), moving, 100_000, B), [[1]])
        assert (files(tmp_path).pop().stat().st_size > 100_000) == moving


def full_of(state: State, name: str, sub: SubModel, before: Tensor | None) -> Tensor:
    part, size = (sub.buffers, B) if name.startswith("buffers") else (sub.params, P)
    whole = torch.zeros(size) if before is None else before.clone()
    return whole.index_copy_(0, part.index, state[name])


def test_values_survive_rounds_at_other_levels(tmp_path: Path) -> None:
    """Level 0, then 1, then the whole: held now, held once, never held; parameters, buffers and
    numbers, against index arithmetic.
    """
    store, params, buffers = ClientStore(str(tmp_path), True, P, B), None, None
    for round, level in enumerate((0, 1, 0), 1):
        saved = state(round, level) | {"buffers_before": state(round + 50, level)["buffers"]}
        store.save(task(1, round, level), SUBS[level], saved)
        store.advance(round, [1])
        params = full_of(saved, "control", SUBS[level], params)
        buffers = full_of(saved, "buffers_before", SUBS[level], buffers)
        for now, sub in SUBS.items():
            found = store.load(task(1, round + 1, now), sub)
            assert found is not None and found["count"].tolist() == [round]
            assert torch.equal(found["control"], params[sub.params.index])
            assert torch.equal(found["buffers_before"], buffers[sub.buffers.index])
    whole = store.load(task(1, 4, 2), SUBS[2])
    assert whole is not None
    never = [1, 9, 10, *range(12, 19)]
    once = [0, 11, 19]  # held at level 1 alone
    assert not whole["control"][never].any() and not whole["buffers"][[3, 4, 5, 7]].any()
    assert (
        torch.equal(whole["control"][once], state(2, 1)["control"][[3, 0, 4]])
        and whole["control"][once].all()
    )


@pytest.mark.parametrize("seed", range(6))
def test_moving_clients_at_random(tmp_path: Path, seed: int) -> None:
    """Several clients over many rounds, some of which fail, against a table of full vectors; pruned
    as checkpoints move on.
    """
    stream, store = np.random.default_rng(seed), ClientStore(str(tmp_path), True, P, B)
    table: dict[int, dict[str, Tensor]] = {}
    for round in range(1, 16):
        cohort = {int(c): int(stream.integers(3)) for c in stream.choice(4, 2, replace=False)}
        for attempt in range(2):  # the first attempt fails
            news = {}
            for client, level in cohort.items():
                found, known = (
                    store.load(task(client, round, level), SUBS[level]),
                    table.get(client),
                )
                assert (found is None) == (known is None)
                for name, part in (
                    ("control", SUBS[level].params),
                    ("buffers", SUBS[level].buffers),
                ):
                    assert (
                        found is None
                        or known is None
                        or torch.equal(found[name], known[name][part.index])
                    )
                saved = state(1000 * attempt + 10 * round + client, level)
                store.save(task(client, round, level), SUBS[level], saved)
                news[client] = {
                    n: full_of(saved, n, SUBS[level], (known or {}).get(n))
                    for n in ("control", "buffers")
                }
        table |= news
        store.advance(round, cohort)
        store.prune(max(0, round - 2))
