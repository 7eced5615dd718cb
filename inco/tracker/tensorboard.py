"""Mirror a run to TensorBoard's files: `tensorboard --logdir outputs/tensorboard` shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inco.tracker import RunInfo
from inco.tracker.online import short


class TensorBoard:
    """Write numbers, pictures and settings to `<outputs>/tensorboard/<run>`; the step of everything
    is the round.

    Never raises: without the package, or after the first error, it is off for the run, with one
    line in `warnings`. A resumed run hides what an earlier sitting wrote for the rounds that it
    repeats.
    """

    report = False

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._writer: Any = None

    def start(self, run: RunInfo) -> str | None:
        """Open the run's files and say where they are."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.warnings.append(
                'TensorBoard is not installed: pip install "inco[tensorboard]", or use another'
                " tracker"
            )
            return self.warnings[-1]
        folder = run.folder.parent / "tensorboard" / run.folder.name
        try:
            self._writer = SummaryWriter(str(folder), purge_step=run.rounds + 1)
            self._writer.add_text("settings", _code(run.config), run.rounds)
        except Exception as error:
            return self._off("could not start", error)
        return f"TensorBoard: tensorboard --logdir {folder.parent}"

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        """Mirror the numbers of one round."""
        known = {key: value for key, value in metrics.items() if value is not None}
        self._do(
            f"stopped at round {round}",
            lambda writer: [writer.add_scalar(key, known[key], round) for key in known],
        )
        self._do("stopped", lambda writer: writer.flush())

    def image(self, key: str, path: Path, round: int) -> None:
        """Mirror an image file."""
        from matplotlib.image import imread

        self._do(
            f"stopped at {path.name}",
            lambda writer: writer.add_image(key, imread(path), round, dataformats="HWC"),
        )

    def table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], round: int
    ) -> None:
        """Mirror a table, as text."""
        rule = ["---"] * len(columns)
        lines = ["|" + "|".join(map(str, row)) + "|" for row in (columns, rule, *rows)]
        self._do(f"stopped at {key}", lambda writer: writer.add_text(key, "\n".join(lines), round))

    def file(self, path: Path) -> None:
        """Keep no files: TensorBoard has no place for them."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the last facts and close the files."""

        def close(writer: Any) -> None:
            writer.add_text("summary", _code(summary), int(summary.get("rounds", 0)))
            writer.close()

        self._do("could not close", close)
        self._writer = None

    def _do(self, what: str, write: Callable[[Any], Any]) -> None:
        if self._writer is not None:
            try:
                write(self._writer)
            except Exception as error:
                self._off(what, error)

    def _off(self, what: str, error: Exception) -> str:
        self._writer = None
        line = (
            f"TensorBoard {what} and is off for this run: {short(error)}; metrics.jsonl has every"
            " round"
        )
        self.warnings.append(line)
        return line


def _code(facts: Mapping[str, Any]) -> str:
    """Write facts as a block that TensorBoard shows as it is."""
    text = json.dumps(facts, indent=2, default=str)
    return "\n".join(f"    {line}" for line in text.splitlines())
