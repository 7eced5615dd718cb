"""Ctrl-C before there is a run to interrupt: while Python imports, and while the command line is
checked. Nothing is imported here, so that it can come first.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def leave_on_interrupt() -> None:
    """Let Ctrl-C end the process with one line, until `take_over`.

    Where somebody else handles it already, or it is ignored, that stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def take_over() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, for those who have something to keep."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    # an exception would be lost, or printed, by whatever is being imported
    os.write(2, b"\ninterrupted; nothing has been run\n")
    os._exit(INTERRUPTED)
