"""What a user sees: plain lines in a file, a bar on a terminal, tables that fit 80 columns."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from inco.run import console as display
from inco.run.console import Progress, announce, closing, final_table, sweep_table


def console(width=80, terminal=False):
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, highlight=False, color_system=None
    )


def shown(console):
    return console.file.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_plain_output_is_one_line_a_round_with_eta(clock):
    out = console()
    with Progress(12, 2, out) as bar:
        for round_, took in ((3, 10), (4, 10), (5, 100)):
            clock[0] += took
            row = {"round": round_, "train/loss": 0.5}
            bar.on_round(None, row | ({"test/acc": 61.234} if round_ == 4 else {}))
        assert bar.eta_s() == 70  # the median of 10, 10 and 100 s, seven times
    lines = shown(out).splitlines()[:3]
    assert [line.split()[1] for line in lines] == ["3/12", "4/12", "5/12"]
    assert (
        "accuracy  61.23%" in lines[1]
        and "accuracy       -" in lines[0]
        and lines[2].endswith("elapsed 2:00  left 1:10")
    )
    assert "\x1b" not in shown(out)


def test_terminal_output_has_a_line_for_each_evaluated_round():
    out = console(terminal=True)
    with Progress(4, 0, out) as bar:
        for round_ in range(1, 5):
            accuracy = 10.0 * round_ if round_ % 2 == 0 else None
            row = {"round": round_, "train/loss": float("nan"), "test/acc": accuracy}
            bar.on_round(None, row)
    assert shown(out).count(
        "accuracy"
    ) == 2 and "round 4/4  accuracy  40.00%  loss     nan" in shown(out)


def test_header_tables_and_closing_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = console()
    announce(
        {
            "dataset": "digits [red]",
            "models": "w1/4 (12,300), w1 (1,200,000) parameters",
            "folder": display.short_path(tmp_path / "outputs/a"),
        },
        out,
    )
    sizes = {"params/w1/4": 12_300, "params/w1": 1_200_000, "flops/w1/4": 4.2e6, "flops/w1": 3.1e9}
    last = {"test/acc/w1/4": 80.0, "test/acc/w1": 90.0}
    final_table(sizes | last | {"test/acc/w1/4_best": 81.5, "test/acc/w1_best": None}, out)
    rows = [(0, "algorithm=fedavg model.blocks=[1,2]", "finished", 85.0, tmp_path / "outputs/s/a")]
    sweep_table([*rows, (1, "algorithm=moon", "failed", None, tmp_path / "outputs/s/b")], out)
    closing(tmp_path / "outputs/a", "python run.py rounds=10 " + "x=1 " * 30, out)
    text = shown(out)
    parts = (
        "digits [red]",
        "w1/4 (12,300), w1 (1,200,000) parameters",
        "12.3k",
        "1.2M",
        "outputs/a",
        "85.00%",
        "Sweep in outputs/s",
        "model.blocks=[1,2]",
        "3.1G",
    )
    assert [part for part in parts if part not in text] == []
    assert text.splitlines()[-2] == "folder  outputs/a" and text.splitlines()[-1].startswith(
        "resume  python run.py rounds=10"
    )
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])


def test_sweep_without_a_common_folder_says_each():
    out = console(120)
    sweep_table(
        [(0, "a=1", "finished", 1.0, Path("x/a")), (1, "a=2", "finished", 1.0, Path("y/b"))], out
    )
    assert "x/a" in shown(out) and "y/b" in shown(out)


SPANS = [(None, "-"), (7, "0:07"), (725, "12:05"), (11045, "3:04:05"), (187_200, "2d 04:00")]


@pytest.mark.parametrize(("seconds", "said"), SPANS)
def test_clock(seconds, said):
    assert display._clock(seconds) == said


def test_short_path_leaves_other_folders_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        display.short_path(Path("/elsewhere/x")) == "/elsewhere/x"
        and display.short_path(tmp_path / "x") == "x"
    )
