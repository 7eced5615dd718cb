"""Mirror a run to TensorBoard's files: `tensorboard --logdir outputs/tensorboard` shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inco.tracker import RunInfo, Tracker


class TensorBoard(Tracker):
    """Write numbers, pictures and settings to `<outputs>/tensorboard/<run>`; the step of everything
    is the round. Files of the run are not kept: TensorBoard has no place for them.

    Never raises: without the package, or after the first error, it is off for the run, with one
    line in `warnings`. A resumed run hides what an earlier session wrote for the rounds that it
    repeats.
    """

    service = "TensorBoard"

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
            self._run = SummaryWriter(str(folder), purge_step=run.rounds + 1)
            self._run.add_text("settings", _code(run.config), run.rounds)
        except Exception as error:
            return self._off("could not start", error)
        return f"TensorBoard: tensorboard --logdir {folder.parent}"

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        def write(writer: Any) -> None:
            for key, value in metrics.items():
                if value is not None:
                    writer.add_scalar(key, value, round)
            writer.flush()

        self._try(f"stopped at round {round}", write)

    def image(self, key: str, path: Path, round: int) -> None:
        from matplotlib.image import imread

        self._try(
            f"stopped at {path.name}",
            lambda writer: writer.add_image(key, imread(path), round, dataformats="HWC"),
        )

    def table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], round: int
    ) -> None:
        """Mirror a table, as text."""
        rule = ["---"] * len(columns)
        lines = ["|" + "|".join(map(str, row)) + "|" for row in (columns, rule, *rows)]
        self._try(f"stopped at {key}", lambda writer: writer.add_text(key, "\n".join(lines), round))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        def close(writer: Any) -> None:
            writer.add_text("summary", _code(summary), int(summary.get("rounds", 0)))
            writer.close()

        self._try("could not close", close)
        self._run = None


def _code(facts: Mapping[str, Any]) -> str:
    """Write facts as a block that TensorBoard shows as it is."""
    text = json.dumps(facts, indent=2, default=str)
    return "\n".join(f"    {line}" for line in text.splitlines())
