"""R17 to R19, R22: data that is damaged, swapped or missing, settings that are wrong, and files
that want to run something.
"""

from __future__ import annotations

import ast
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutate import bombs
from fuzz.subjects_data import Idx
from support import ROOT, TINY, simulate

from faults.sitting import ONE, copied, last_checkpoint, sit
from inco.data.sources import Digits
from inco.errors import ConfigError, DataError, InCoError, StorageError
from inco.run.front import check

pytestmark = pytest.mark.full

CONF = ROOT / "conf"


def quickest(
    type_command, *words: str, seconds: float, slow_import: bool = False
) -> subprocess.CompletedProcess[str]:
    """Type a command that is refused, and see that it computed for less than so long, and waited
    for nothing.

    A busy machine does not count then; up to three times, since a processor that two share is slow
    now and then. `slow_import`: torch is needed, and on a machine that is slow at importing it
    three times as long as that takes is enough.
    """
    took = []
    for _ in range(3):
        before, began = _children(), time.monotonic()
        done = type_command(*words)
        took.append((_children() - before, time.monotonic() - began))
        if took[-1][0] < seconds:
            break
    assert min(passed for _, passed in took) < 20 * seconds, took
    assert min(computed for computed, _ in took) < max(
        seconds, 3 * importing() if slow_import else 0.0
    ), took
    assert "Traceback" not in done.stderr
    return done


def importing() -> float:
    """Return how long this machine computes now for importing what a run needs, torch above all."""
    before = _children()
    subprocess.run([sys.executable, "-c", "import inco.assembly"], cwd=ROOT, check=True)
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_r17_a_changed_pixel_and_swapped_files_are_noticed_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's files are known by their content, whatever they are called."""
    small = Idx(tmp_path / "data", random.Random(0))
    monkeypatch.setattr("inco.data.sources.FashionMNIST", small.source)
    words = [
        *TINY[:1],
        "dataset=fashion_mnist",
        f"dataset.root={small.folder}",
        "num_clients=5",
        "engine.workers=1",
        "model.widths=[2,4,4,8]",
    ]
    assert len(simulate(*words, rounds=1)[1]) == 1, "as they are, they train"
    images = small.folder / "train-images-idx3-ubyte"
    data = bytearray(images.read_bytes())
    data[5000] ^= 1
    images.write_bytes(data)
    with pytest.raises(
        DataError, match=r"the content has sha256 .* and the original .* damaged or another dataset"
    ):
        simulate(*words, rounds=1)
    images.write_bytes(small.good[images])
    labels = small.folder / "train-labels-idx1-ubyte"
    # the labels of other images
    labels.write_bytes(small.good[labels][:8] + small.good[labels][8:][::-1])
    with pytest.raises(DataError, match="the content has sha256"):
        simulate(*words, rounds=1)


def test_r17_the_bundled_digits_are_known_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(Digits().load().train.labels) == 1437
    read = Digits.read

    def swapped(self: Digits) -> object:
        (x, y), test = read(self)
        y = y.copy()
        y[[0, 1]] = y[[1, 0]]
        return (x, y), test

    monkeypatch.setattr(Digits, "read", swapped)
    with pytest.raises(DataError, match="the content has sha256"):
        simulate(*TINY[:1], "tracker=none", "engine.workers=1", rounds=1)


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "cinic10"])
def test_r18_missing_data_is_told_on_one_screen(type_command, tmp_path: Path, dataset: str) -> None:
    """Exit code 3 in 3 s, without a try at the network: what was looked for, where, how to get it,
    and what works without.
    """
    done = quickest(
        type_command,
        "debug=tiny",
        f"dataset={dataset}",
        "dataset.root=nowhere",
        "engine.workers=1",
        seconds=3,
        slow_import=True,
    )
    assert done.returncode == 3, done.stderr
    for said in (
        "the data is not there",
        str(tmp_path / "nowhere"),
        "dataset.root=PATH",
        f"python -m inco.data fetch {dataset}",
        "quickstart",
    ):
        assert said in done.stderr, said
    assert len(done.stderr.splitlines()) < 25 and not (tmp_path / "outputs" / "checkpoint").exists()


WRONG = (
    "local.lr=-1",
    "algorithm=fedavgg",
    "partition.min_sze=3",
    "rounds=0",
    "local.batch_size=ten",
    "uplink.nonfinite=ignore",
)


def test_r19_all_that_is_wrong_is_told_at_once(type_command) -> None:
    """Exit code 2 in 2 s and torch's import; names, types, ranges and combinations, each with what
    would be right.
    """
    done = quickest(type_command, *WRONG, seconds=2, slow_import=True)
    assert done.returncode == 2 and done.stderr.startswith(
        "6 problems in the settings; nothing has been run:"
    ), done.stderr
    for said in (
        "did you mean fedavg?",
        "partition.min_size",
        "local.lr=-1: must be above 0",
        "rounds=0",
        "local.batch_size=ten",
        "stop, skip",
    ):
        assert said in done.stderr, said
    both = quickest(
        type_command,
        "algorithm=scaffold",
        "algorithm.option=II",
        "num_clients=3",
        "split=isolated",
        seconds=2,
        slow_import=True,
    )
    assert both.returncode == 2 and "plain SGD" in both.stderr and "num_clients=3" in both.stderr


def test_r19_a_sweep_is_checked_as_a_whole(type_command, tmp_path: Path) -> None:
    """The last of six points is wrong: nothing of the first five is run."""
    done = quickest(
        type_command, "-m", *ONE, "seed=0,1", "local.lr=0.1,0.01,-3", seconds=4, slow_import=True
    )
    assert (
        done.returncode == 2
        and "local.lr=-3" in done.stderr
        and not (tmp_path / "outputs").exists()
    )


UNKNOWN = ["algorithm=fedvg", "local.lrr=1", "+mine=2"]


def test_r19_nothing_heavy_is_imported_for_unknown_names() -> None:
    code = (
        "import sys; from pathlib import Path; from inco.config.naming import register; from"
        " inco.run.front import check; register()\nfrom inco.errors import ConfigError\ntry:"
        f" check(Path({str(CONF)!r}), {UNKNOWN!r}, deep=False)\nexcept ConfigError as error:"
        " print(len(error.problems), *[m for m in ('torch', 'numpy', 'wandb') if m in"
        " sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["3"], done.stdout + done.stderr


def test_r22_a_malicious_file_runs_nothing(tmp_path: Path) -> None:
    """In place of a checkpoint, a client's vectors, weights, a partition and a dataset: refused,
    and nothing is run.
    """
    marker = tmp_path / "ran"
    stateful = ("algorithm=scaffold", "local=sgd", "local.momentum=0")
    sit(tmp_path / "run", *stateful, rounds=2)
    refusals = 0
    for number, bomb in enumerate(bombs(marker)):
        run = copied(tmp_path / "run", f"run{number}")
        for one in (run / "checkpoint").glob("round_*"):
            (one / "state.safetensors").write_bytes(bomb)
        (tmp_path / f"p{number}.npy").write_bytes(bomb)
        (tmp_path / f"w{number}.pt").write_bytes(bomb)
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "cifar10.npz").write_bytes(bomb)
        states = copied(tmp_path / "run", f"states{number}")
        for one in (states / "clients").rglob("*.r*"):
            one.write_bytes(bomb)
        tries = [
            lambda run=run: sit(run, *stateful, rounds=3),
            lambda states=states: sit(states, *stateful, rounds=3),
            lambda n=number: simulate(
                *ONE, "partition=fixed", f"partition.path={tmp_path}/p{n}.npy", rounds=1
            ),
            lambda n=number: simulate(*ONE, f"model.pretrained={tmp_path}/w{n}.pt", rounds=1),
            lambda n=number: simulate(
                "dataset=cifar10",
                f"dataset.root={tmp_path}/d{n}",
                "tracker=none",
                "engine.workers=1",
                rounds=1,
            ),
        ]
        for attempt in tries:
            with pytest.raises((DataError, StorageError)):
                attempt()
            refusals += 1
            assert not marker.exists(), "a file has run something"
    assert refusals == 25
    np.load(tmp_path / "p2.npy", allow_pickle=True)
    assert marker.exists(), "the file would have run something"
    assert last_checkpoint(tmp_path / "run").name == "round_000002"


def test_r22_a_target_outside_the_package_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("os.system", "builtins.exec", "subprocess.Popen", "incox.Thing", "torch.load"):
        with pytest.raises(
            ConfigError,
            match=rf"algorithm\._target_={re.escape(target)}: only classes below inco\.",
        ):
            check(CONF, [f"algorithm._target_={target}"])
    with pytest.raises(InCoError):
        check(CONF, ["algorithm._target_=null"])
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "incox")
    assert check(CONF, ["algorithm._target_=incox.Thing"], deep=False), "allowed by the user"


FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
    "yaml.load",
    "marshal.loads",
    "shelve.open",
    "os.system",
}


# what a run's own processes tell one another, as torch.distributed's object collectives do
BETWEEN_OWN_PROCESSES = {"inco/engine/ranks.py", "inco/plan/process.py"}


def test_r22_no_reader_of_pickles_is_called() -> None:
    """Read from the source: torch.load says weights_only=True, numpy.load allow_pickle=False, and
    nothing else unpickles what may come from elsewhere.
    """
    calls = 0
    for path in sorted((ROOT / "inco").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, said = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            own = str(path.relative_to(ROOT)) in BETWEEN_OWN_PROCESSES and name == "pickle.loads"
            assert own or name not in FORBIDDEN, f"{path}:{node.lineno} calls {name}"
            if name == "torch.load":
                calls += 1
                assert said.get("weights_only") == "True", f"{path}:{node.lineno}"
            if name in ("np.load", "numpy.load") or name.endswith("('numpy').load"):
                calls += 1
                assert said.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
    assert calls >= 4, "the rule speaks of something"
