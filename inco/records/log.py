"""The log of a run: run.log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inco.records.record import storage_error


class _LogFile(logging.FileHandler):
    """A log file that cannot break a run: it reports once that it cannot be written."""

    reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.reported:
            self.reported = True
            print(
                f"cannot write {self.baseFilename}: {sys.exc_info()[1]}; the run goes on"
                " without it",
                file=sys.stderr,
            )


@contextmanager
def setup_log(folder: Path) -> Iterator[logging.Logger]:
    """Send what the `inco` loggers report to `run.log`, with times, until the block ends.

    The root logger stays as it is, so that runs of a sweep in one process neither share a file nor
    write lines twice.
    """
    path = folder / "run.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise storage_error("open", path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger("inco")
    level = logger.level
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the console belongs to the progress display
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk again, at what was left to write
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
