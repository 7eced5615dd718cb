"""What a user sees of a run: a header, a bar or plain lines, the final tables, and where to go
on.
"""

import math
import shlex
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from inco.callbacks import Callback

# rounds whose median time the ETA goes by: few enough to follow a change, enough to ignore one slow
# round
_RECENT = 9
_CONSOLE = Console(highlight=False)
_STYLES = {"finished": "green", "failed": "red", "interrupted": "yellow"}


class Progress(Callback):
    """Live display of a run of `total` rounds, of which `done` are done already.

    On a terminal: one bar at the bottom, and a line for each evaluated round above it. Elsewhere (a
    file, a pipe, a batch job): a plain line for every round, flushed, without colours or control
    characters.
    """

    def __init__(self, total: int, done: int = 0, console: Console = _CONSOLE) -> None:
        self.total = total
        self.done = done
        self.console = console
        self._live = console.is_terminal and not console.is_dumb_terminal
        self._began = time.monotonic()
        self._last = self._began
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._accuracy: float | None = None
        self._loss: float | None = None
        self._bar = Bar(
            TextColumn("round {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
            expand=True,
            transient=True,
            disable=not self._live,
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(self._scores(), total=total, completed=done, left="-")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._last = self._began
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self.console.print()

    def on_round(self, state: object, metrics: Mapping[str, Any]) -> None:
        """Show a finished round, of metrics with the keys of metrics.jsonl."""
        now = time.monotonic()
        self._recent.append(now - self._last)
        self._last = now
        self.done = int(metrics["round"])
        accuracy = metrics.get("test/acc")
        loss = metrics.get("train/loss")
        if accuracy is not None:
            self._accuracy = accuracy
        if loss is not None:
            self._loss = loss
        if accuracy is not None or not self._live:
            self._print_line(accuracy, loss)
        left = _clock(self.eta_s())
        self._bar.update(self._task, completed=self.done, description=self._scores(), left=left)

    def on_client_end(self, task: object, done: int, of: int) -> None:
        """Show how far a round has come: clients trained by this worker. On a terminal alone."""
        self._bar.update(self._task, description=f"{self._scores()}  client {done}/{of}")

    def eta_s(self) -> float | None:
        """Estimate the seconds left: the median of the last rounds times the rounds to go."""
        if not self._recent:
            return None
        return statistics.median(self._recent) * max(self.total - self.done, 0)

    def _scores(self) -> str:
        return f"acc {_percent(self._accuracy)}  loss {_number(self._loss)}"

    def _print_line(self, accuracy: float | None, loss: float | None) -> None:
        """Print the line of a round whole, without markup or wrapping, and flush it."""
        elapsed = _clock(self._last - self._began)
        times = f"at {elapsed}"
        if not self._live:
            times = f"elapsed {elapsed}  left {_clock(self.eta_s())}"
        number = f"{self.done:>{len(str(self.total))}}/{self.total}"
        scores = f"accuracy {_percent(accuracy):>7}  loss {_number(loss):>7}"
        _print_whole(self.console, f"round {number}  {scores}  {times}")


def announce(facts: Mapping[str, Any], console: Console = _CONSOLE) -> None:
    """Print the header of a run: what it trains, on what, how, and where it writes."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    console.print(table)
    console.print()


def final_table(summary: Mapping[str, Any], console: Console = _CONSOLE) -> None:
    """Print a finished run's accuracy by capacity."""
    table = _table("Test accuracy by capacity")
    table.add_column("capacity", no_wrap=True)
    for head in ("parameters", "FLOPs", "last", "best"):
        table.add_column(head, justify="right", no_wrap=True)
    names = [key.removeprefix("params/") for key in summary if key.startswith("params/")]
    for name in names:
        sizes = [_amount(summary[f"{what}/{name}"]) for what in ("params", "flops")]
        scores = [_percent(summary[f"test/acc/{name}{end}"]) for end in ("", "_best")]
        table.add_row(Text(name), *sizes, *scores)
    if len(names) > 1:
        accuracies = [summary[f"test/acc/{name}"] for name in names]
        mean = None if None in accuracies else sum(accuracies) / len(accuracies)
        table.add_section()
        table.add_row("mean", "", "", _percent(mean), "")
    console.print(table)
    console.print()


def sweep_table(
    rows: Iterable[tuple[int, str, str, float | None, Path]], console: Console = _CONSOLE
) -> None:
    """Print the jobs of a sweep. A row is (job, overrides, status, accuracy in percent, folder)."""
    rows = list(rows)
    parents = {row[4].parent for row in rows}
    # named once, so that the column holds names alone
    home = parents.pop() if len(parents) == 1 else None
    table = _table(f"Sweep in {short_path(home)}" if home else "Sweep")
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("overrides", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for job, overrides, status, accuracy, folder in rows:
        where = folder.name if home else short_path(folder)
        styled = Text(status, style=_STYLES.get(status, ""))
        table.add_row(str(job), Text(overrides), styled, _percent(accuracy), Text(where))
    console.print(table)
    console.print()


def closing(folder: Path, command: str, console: Console = _CONSOLE) -> None:
    """Print the last lines of a run: its folder, its report, and the command that goes on from
    here.
    """
    _print_whole(console, f"folder  {shlex.quote(short_path(folder))}")
    report = folder / "report.html"
    if report.exists():
        _print_whole(console, f"report  {shlex.quote(short_path(report))}")
    _print_whole(console, f"resume  {command}")


def short_path(path: Path) -> str:
    """Return a path as it reads best: relative where it is below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )


def _print_whole(console: Console, line: str) -> None:
    """Print a line as it is, so that it can be copied, and flush it."""
    console.print(Text(line), soft_wrap=True)
    console.file.flush()


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _amount(value: float) -> str:
    """Write a large number short: 11.2M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _clock(seconds: float | None) -> str:
    """Write a time span: 0:07, 12:05, 3:04:05, 2d 04:00."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
