"""What a user sees of a run: a header, a bar or plain lines, the final tables, and where to go
on.
"""

import math
import re
import shlex
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from inco.callbacks import Callback

# rounds whose median time the ETA goes by: few enough to follow a change, enough to ignore one slow
# round
RECENT = 9


class Progress(Callback):
    """Live display of a run of `total_rounds`, of which `start_round` are done already.

    On a terminal: one bar at the bottom, and a line for each evaluated round above it. Elsewhere (a
    file, a pipe, a batch job): a plain line for every round, flushed, without colours or control
    characters.
    """

    def __init__(
        self, total_rounds: int, start_round: int = 0, console: Console | None = None
    ) -> None:
        self.total = total_rounds
        self.done = start_round
        self.console = console or Console(highlight=False)
        self._live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._began = self._last = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._bar = Bar(
            TextColumn("round {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            expand=True,
            transient=True,
            disable=not self._live,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(
            _facts(None, None), total=total_rounds, completed=start_round, left="-"
        )
        self._acc: float | None = None
        self._loss: float | None = None

    def __enter__(self) -> "Progress":
        self._began = self._last = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self.console.print()

    def on_round(self, state: object, metrics: Mapping[str, Any]) -> None:
        self.round(metrics)

    def on_client_end(self, task: object, done: int, of: int) -> None:
        self.client(done, of)

    def round(self, row: Mapping[str, Any]) -> None:
        """Show the row of a finished round, with the keys of metrics.jsonl."""
        now = time.monotonic()
        self._recent.append(now - self._last)
        self._last = now
        self.done = int(row["round"])
        acc = row.get("test/acc")
        loss = row.get("train/loss")
        self._acc, self._loss = (
            self._acc if acc is None else acc,
            self._loss if loss is None else loss,
        )
        if not self._live:
            self._print(self._line(acc, loss, with_times=True))
        else:
            if acc is not None:
                self._print(self._line(acc, loss, with_times=False))
            facts = _facts(self._acc, self._loss)
            left = _clock(self.eta_s())
            self._bar.update(self._task, completed=self.done, description=facts, left=left)

    def client(self, done: int, of: int) -> None:
        """Show how far a round has come: clients trained by this worker. On a terminal alone."""
        self._bar.update(
            self._task, description=f"{_facts(self._acc, self._loss)}  client {done}/{of}"
        )

    def eta_s(self) -> float | None:
        """Estimate the seconds left: the median of the last rounds times the rounds to go."""
        return (
            statistics.median(self._recent) * max(self.total - self.done, 0)
            if self._recent
            else None
        )

    def _line(self, acc: float | None, loss: float | None, with_times: bool) -> str:
        """Say one round in one line."""
        width = len(str(self.total))
        parts = [
            f"round {self.done:>{width}}/{self.total}",
            f"accuracy {_percent(acc):>7}",
            f"loss {_number(loss):>7}",
        ]
        if with_times:
            parts += [f"elapsed {_clock(self._last - self._began)}", f"left {_clock(self.eta_s())}"]
        else:
            parts.append(f"at {_clock(self._last - self._began)}")
        return "  ".join(parts)

    def _print(self, line: str) -> None:
        """Print a line whole, without markup or wrapping, and flush it."""
        self.console.print(Text(line), soft_wrap=True)
        self.console.file.flush()


def announce(facts: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the header of a run: what it trains, on what, how, and where it writes."""
    console = console or Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(str(name)), Text(_fact(value)))
    console.print(table)
    console.print()


def final_table(
    rows: Iterable[tuple[str, int, float, float | None, float | None]],
    console: Console | None = None,
) -> None:
    """Print accuracy by capacity.

    A row is (capacity, parameters, FLOPs, last accuracy, best accuracy), in percent.
    """
    console = console or Console(highlight=False)
    rows = list(rows)
    table = Table(
        title="Test accuracy by capacity",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("capacity", no_wrap=True)
    for head in ("parameters", "FLOPs", "last", "best"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, params, flops, last, best in rows:
        table.add_row(Text(name), _amount(params), _amount(flops), _percent(last), _percent(best))
    if len(rows) > 1:
        table.add_section()
        table.add_row("mean", "", "", _percent(_mean([row[3] for row in rows])), "")
    console.print(table)
    console.print()


def sweep_table(
    rows: Iterable[tuple[int, str, str, float | None, Path | str]], console: Console | None = None
) -> None:
    """Print the jobs of a sweep. A row is (job, overrides, status, accuracy in percent, folder)."""
    console, rows = console or Console(highlight=False), list(rows)
    parents = {Path(row[4]).parent for row in rows}
    # said once, so that the column holds names alone
    home = parents.pop() if len(parents) == 1 else None
    title = f"Sweep in {short_path(home)}" if home else "Sweep"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("overrides", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    styles = {"finished": "green", "failed": "red", "interrupted": "yellow"}
    for job, overrides, status, accuracy, folder in rows:
        told = Text(status, style=styles.get(status, ""))
        where = Path(folder).name if home else short_path(folder)
        table.add_row(str(job), Text(_spaced(overrides)), told, _percent(accuracy), Text(where))
    console.print(table)
    console.print()


def closing(folder: Path | str, command: str, console: Console | None = None) -> None:
    """Print the last lines of a run: its folder, its report, and the command that goes on from
    here.
    """
    console = console or Console(highlight=False)
    # whole, so that it can be copied
    console.print(Text(f"folder  {shlex.quote(short_path(folder))}"), soft_wrap=True)
    if (report := Path(folder) / "report.html").exists():
        console.print(Text(f"report  {shlex.quote(short_path(report))}"), soft_wrap=True)
    console.print(Text(f"resume  {command}"), soft_wrap=True)
    console.file.flush()


def short_path(path: Path | str) -> str:
    """Give a path as it reads best: relative where it is below the working directory."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _facts(acc: float | None, loss: float | None) -> str:
    """Say what stands right of the bar."""
    return f"acc {_percent(acc)}  loss {_number(loss)}"


def _fact(value: Any) -> str:
    """Say the value of a fact: lists by commas, paths short."""
    if isinstance(value, Path):
        return short_path(value)
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} {_amount(item) if isinstance(item, int) else item}"
            for name, item in value.items()
        )
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _spaced(overrides: str | Iterable[str]) -> str:
    """Give overrides with a space between them, so that a table can break the line there."""
    return (
        re.sub(r",(?=[\w./+~@]+=)", " ", overrides)
        if isinstance(overrides, str)
        else " ".join(overrides)
    )


def _percent(value: float | None) -> str:
    """Write an accuracy."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}%"


def _number(value: float | None) -> str:
    """Write a loss."""
    return "-" if value is None else f"{value:.4f}"


def _amount(value: float) -> str:
    """Write a large number short: 11.2M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _mean(values: list[float | None]) -> float | None:
    """Give the mean, or None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _clock(seconds: float | None) -> str:
    """Write a time span: 0:07, 12:05, 3:04:05, 2d 04:00."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    days = whole // 86400
    hours = whole // 3600 % 24
    minutes = whole // 60 % 60
    rest = whole % 60
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
