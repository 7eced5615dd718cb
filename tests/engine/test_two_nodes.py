"""torchrun on two hosts: network namespaces of this machine with addresses, working directories and
data of their own, and one cable between them. Equal bits with one process; a killed node and a cut
cable end the other within a minute, by name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

ADDRESSES = ("10.201.77.1", "10.201.77.2")
PORT = "29611"
OVERRIDES = (
    "debug=tiny",
    "dataset=images",
    "dataset.root=data",
    "dataset.size=8",
    "model.widths=[2,4,4,8]",
    "local=sgd",
    "local.momentum=0",
    "local.batch_size=8",
    "algorithm=scaffold",
    "tracker=none",
    "hydra.run.dir=run",
)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def why_not() -> str:
    """Return why this machine has no two hosts; "" where it has."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs Linux's `ip`"
    try:
        ip("netns", "add", "inco-probe")
        ip("netns", "del", "inco-probe")
    except subprocess.CalledProcessError as error:
        return f"`ip netns` does not work here: {error.stderr.strip()}"
    return ""


pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


@dataclass
class Node:
    """One host: its namespace, its end of the cable and its working directory."""

    rank: int
    folder: Path
    run: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def space(self) -> str:
        return f"inco-{os.getpid()}-{self.rank}"

    @property
    def cable(self) -> str:
        return f"inco{self.rank}"

    def inside(self, *command: str) -> str:
        return ip("netns", "exec", self.space, *command)

    def start(self, *overrides: str) -> None:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2")
        where = (f"--node-rank={self.rank}", f"--master-addr={ADDRESSES[0]}")
        more = ("--nproc-per-node=1", f"--master-port={PORT}", str(ROOT / "run.py"))
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env.pop("GLOO_SOCKET_IFNAME", None)  # a run in this process has set it, for its own workers
        with (self.folder / "said").open("wb") as said:
            self.run = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *torchrun, *where, *more, *overrides],
                cwd=self.folder,
                env=env,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def bytes_over_the_cable(self) -> int:
        counters = f"/sys/class/net/{self.cable}/statistics"
        return sum(int(self.inside("cat", f"{counters}/{way}_bytes")) for way in ("rx", "tx"))

    def kill(self) -> None:
        for process in ip("netns", "pids", self.space).split():
            subprocess.run(["kill", "-9", process], check=False)

    def wait_for(self, text: str, seconds: float) -> float:
        """Return the seconds until the node says something."""
        began = time.monotonic()
        while text not in self.said():
            assert time.monotonic() - began < seconds, self.said()
            time.sleep(0.2)
        return time.monotonic() - began


def pictures(folder: Path, seed: int = 0) -> None:
    """A data set of two classes."""
    stream = np.random.default_rng(seed)
    for part, count in (("train", 20), ("test", 6)):
        for kind in ("dark", "light"):
            place = folder / "data" / part / kind
            place.mkdir(parents=True)
            low = 128 * (kind == "light")
            for k in range(count):
                pixels = stream.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{k:03d}.png")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    both = [Node(rank, tmp_path / name) for rank, name in enumerate(("first", "second"))]
    for node in both:
        node.folder.mkdir()
        pictures(node.folder)
        ip("netns", "add", node.space)
    try:
        first, second = both
        ip("link", "add", first.cable, "netns", first.space, "type", "veth", "peer", "name",
           second.cable, "netns", second.space)  # fmt: skip
        for node, address in zip(both, ADDRESSES, strict=True):
            node.inside("ip", "addr", "add", f"{address}/24", "dev", node.cable)
            node.inside("ip", "link", "set", node.cable, "up")
            node.inside("ip", "link", "set", "lo", "up")
        yield both
    finally:
        for node in both:
            node.kill()
            ip("netns", "del", node.space)


def wait_for_rounds(node: Node, number: int, seconds: float = 120) -> None:
    rows = node.folder / "run" / "metrics.jsonl"
    until = time.monotonic() + seconds
    while not rows.exists() or len(rows.read_text().splitlines()) < number:
        assert time.monotonic() < until and node.run and node.run.poll() is None, node.said()
        time.sleep(0.1)


def test_two_nodes_have_the_bits_of_one_process(nodes: list[Node], tmp_path: Path) -> None:
    """SCAFFOLD, whose clients' vectors lie on a file system that both see."""
    shared = f"engine.state_dir={tmp_path / 'shared'}"
    connections: set[tuple[str, str]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            for line in nodes[0].inside("ss", "-tnH", "state", "established").splitlines():
                mine, other = (place.rpartition(":")[0].strip("[]") for place in line.split()[2:4])
                connections.add((mine.removeprefix("::ffff:"), other.removeprefix("::ffff:")))

    watching = threading.Thread(target=look)
    if shutil.which("ss"):
        watching.start()
    for node in nodes:
        node.start(*OVERRIDES, shared, "rounds=4")
    for node in nodes:
        assert node.run is not None and node.run.wait(timeout=180) == 0, node.said()
    done.set()
    summary = json.loads((nodes[0].folder / "run" / "summary.json").read_text())
    assert summary["workers"] == 2 and not (nodes[1].folder / "run" / "summary.json").exists()
    seen = nodes[0].bytes_over_the_cable()
    alone = tmp_path / "alone"
    alone.mkdir()
    pictures(alone)
    command = [sys.executable, str(ROOT / "run.py"), *OVERRIDES, "rounds=4", "engine.workers=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=alone, env=environment, check=True, capture_output=True)
    expected = json.loads((alone / "run" / "summary.json").read_text())
    assert summary["weights_sha256"] == expected["weights_sha256"]
    # every round each node sends its sums to the other
    largest = summary["params/resnet26"]
    assert seen > 4 * 8 * largest
    assert not shutil.which("ss") or ADDRESSES in connections


def test_a_killed_node_ends_the_other_by_name(nodes: list[Node], tmp_path: Path) -> None:
    for node in nodes:
        node.start(*OVERRIDES, f"engine.state_dir={tmp_path / 'shared'}", "rounds=5000")
    wait_for_rounds(nodes[0], 2)
    nodes[1].kill()
    seconds = nodes[0].wait_for("nothing has been heard of rank 1", 60)
    assert ADDRESSES[1] in nodes[0].said() and "the same command goes on" in nodes[0].said()
    assert seconds < 60
    summary = json.loads((nodes[0].folder / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["rounds"] >= 2


def test_a_cut_cable_ends_both(nodes: list[Node], tmp_path: Path) -> None:
    for node in nodes:
        node.start(*OVERRIDES, f"engine.state_dir={tmp_path / 'shared'}", "rounds=5000")
    wait_for_rounds(nodes[0], 2)
    nodes[1].inside("ip", "link", "set", nodes[1].cable, "down")
    nodes[0].wait_for("nothing has been heard of rank 1", 60)
    nodes[1].wait_for(f"torchrun's store on {ADDRESSES[0]} has not answered", 60)


def test_nodes_with_different_data_are_refused(nodes: list[Node], tmp_path: Path) -> None:
    shutil.rmtree(nodes[1].folder / "data")
    pictures(nodes[1].folder, seed=1)
    for node in nodes:
        node.start(*OVERRIDES, f"engine.state_dir={tmp_path / 'shared'}", "rounds=2")
    nodes[0].wait_for("rank 1 has other data than rank 0", 120)


def test_a_folder_of_states_that_only_one_sees_is_refused(nodes: list[Node]) -> None:
    for node in nodes:
        node.start(*OVERRIDES, "rounds=2")
    nodes[0].wait_for("ranks [1] do not see what rank 0 writes there", 120)
