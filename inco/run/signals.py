"""Ctrl-C, SIGTERM and SIGUSR1: how a run is asked to stop, and how it does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inco.errors import InCoError
from inco.run.early import INTERRUPTED

PREEMPTED = 75
# how long a round under way may take to end before it is abandoned; a scheduler waits 30 s or so
# before it kills
GRACE_S = 4.0
# what batch systems send before they take a machine away
_PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
_HANDLED = (signal.SIGINT, *_PREEMPTING)
# the second is how a launcher's own handler of a signal leaves, to be started again
INTERRUPTIONS = (KeyboardInterrupt, SystemExit)


class Preempted(KeyboardInterrupt):
    """The run was stopped by SIGTERM or SIGUSR1; the same command goes on."""


def exit_code(error: BaseException) -> int:
    """Return what a run ends with after an error."""
    if isinstance(error, InCoError):
        return error.exit_code
    if isinstance(error, Preempted | SystemExit):
        return PREEMPTED
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


class Stop:
    """Whether somebody has asked to stop.

    Ctrl-C raises at once. SIGTERM and SIGUSR1 let the round end, for `GRACE_S`, and raise then;
    `asked` is set before. A second signal ends the process on the spot.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._at = 0.0
        self._late = False
        self._timer: threading.Timer | None = None

    def check(self) -> None:
        """Raise if asked to; to be called between rounds.

        An exception that Python raises inside a destructor or a callback of the garbage collector
        is printed and dropped: without this a run would go on as if nobody had pressed anything.
        """
        if self.asked is not None:
            raise self._error()

    def handle(self, number: int, frame: Any) -> None:
        """Handle one of the three signals."""
        if self._late:
            raise self._error()
        if self.asked is not None:
            # what comes at the same time means the same: a terminal's Ctrl-C, a parent's SIGTERM
            if time.monotonic() - self._at > 1.0:
                os._exit(exit_code(self._error()))
            return
        self.asked = signal.Signals(number)
        self._at = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self._timer = threading.Timer(GRACE_S, self._interrupt)
        self._timer.daemon = True
        self._timer.start()

    def forget(self) -> None:
        """Take back the request: a lost worker made the interruption, or the run has ended."""
        self.asked = None
        if self._timer is not None:
            self._timer.cancel()

    def _interrupt(self) -> None:
        """Interrupt the main thread with a real signal, which wakes a call that waits."""
        self._late = True
        again = self.asked or signal.SIGTERM
        signal.pthread_kill(threading.main_thread().ident or 0, again)

    def _error(self) -> KeyboardInterrupt:
        if self.asked in _PREEMPTING:
            return Preempted(f"stopped by {self.asked.name}")
        return KeyboardInterrupt()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Handle the signals inside the block.

    Where somebody else handles one already, it stays theirs: a launcher's, or nohup's.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop.handle) for number in _unhandled()}
    try:
        yield stop
    finally:
        stop.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


def fix_exit_code(code: int) -> None:
    """Let the process end with `code`, though signals come while Python is shutting down."""
    for number in _unhandled():
        signal.signal(number, lambda *_: os._exit(code))


def _unhandled() -> list[signal.Signals]:
    """Return the signals that nobody else handles; they come to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return []
    default = (signal.SIG_DFL, signal.default_int_handler)
    return [number for number in _HANDLED if signal.getsignal(number) in default]
