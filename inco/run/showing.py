"""What a run shows beside its record: a tracker, pictures, the report.

None of it can stop the run or change a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.run.pictures import draw, tables

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.tracker import Tracker
    from inco.types import Metrics

# between two refreshes of the report, and the share of a run's time that they may take
_PAUSE_S = 10.0
_SHARE = 0.02


class Showing:
    """`warn`: takes one line where something could not be shown."""

    def __init__(self, tracker: Tracker, folder: Path, warn: Callable[[str], None]) -> None:
        self.tracker = tracker
        self.folder = folder
        self.warn = warn
        self._due = 0.0

    def round(self, run: Assembly, metrics: Metrics, round: int) -> None:
        """Show a round: its numbers, the pictures and tables of diagnostics, and the report, if it
        is due.
        """
        self.tracker.log(metrics, round)
        self._try("pictures", lambda: self._pictures(run, round))
        began = time.monotonic()
        if began >= self._due:
            self._report(live=True)
            spent = time.monotonic() - began
            self._due = began + max(_PAUSE_S, spent / _SHARE)

    def close(self, summary: dict[str, Any], exit_code: int) -> None:
        """Write the last report, of the summary in the folder, and close the tracker."""
        self._report(live=False)
        report = self.folder / "report.html"
        if self.tracker.report and report.exists():
            self.tracker.file(report)
        self.tracker.finish(summary, exit_code)
        for line in self.tracker.warnings:
            self.warn(line)

    def _pictures(self, run: Assembly, round: int) -> None:
        for name, picture in draw(run, self.folder, round):
            self.tracker.image(name, picture, round)
        for name, columns, rows in tables(run, round):
            self.tracker.table(name, columns, rows, round)

    def _report(self, live: bool) -> None:
        from inco.report import write_run

        self._try("report.html", lambda: write_run(self.folder, live=live))

    def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            self.warn(f"{what} could not be made: {why}; the numbers are complete")
