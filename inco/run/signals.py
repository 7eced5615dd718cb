"""Ctrl-C, SIGTERM and SIGUSR1: how a run is asked to stop, and how it does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
PREEMPTED = 75
# how long a round under way may take to end before it is abandoned; a scheduler waits 30 s or so
# before it kills
GRACE_S = 4.0
# what batch systems send before they take a machine away
_PREEMPTING = (
    signal.SIGTERM,
    signal.SIGUSR1,
)


# the second is how a launcher's own handler of a signal leaves, to be started again
INTERRUPTIONS = (
    KeyboardInterrupt,
    SystemExit,
)


class Preempted(KeyboardInterrupt):
    """The run was asked to stop by SIGTERM or SIGUSR1: it can be given again as it is, and goes
    on.
    """


class Stop:
    """Whether somebody has asked to stop.

    Ctrl-C raises at once. SIGTERM and SIGUSR1 let the round end, for `GRACE_S`, and raise then;
    `asked` says so before. A second signal ends the process on the spot.
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

    def note(self, number: int, frame: Any) -> None:
        """Be the handler of all three."""
        if self._late:
            raise self._error()
        if self.asked is not None:
            if (
                time.monotonic() - self._at > 1.0
                # what comes at the same time means the same: a terminal's Ctrl-C, and a parent's
                # SIGTERM
            ):
                os._exit(PREEMPTED if self.asked in _PREEMPTING else INTERRUPTED)
            return
        self.asked = signal.Signals(number)
        self._at = time.monotonic()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        self._timer = threading.Timer(GRACE_S, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def forget(self) -> None:
        """Take back what was asked, and the time that the round has: the interruption was that of a
        lost worker, or the run has ended.
        """
        self.asked = None
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        """Interrupt the main thread: the round has taken too long."""
        self._late = True
        # one that is handled here; a real one, as it wakes a call that waits
        again = self.asked or signal.SIGTERM
        signal.pthread_kill(threading.main_thread().ident or 0, again)

    def _error(self) -> KeyboardInterrupt:
        return (
            Preempted(f"stopped by {self.asked.name}")
            if self.asked in _PREEMPTING
            else KeyboardInterrupt()
        )


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Heed the signals inside the block.

    Where somebody else handles one already, it stays theirs: a launcher's, or nohup's.
    """
    stop = Stop()
    ours = []
    if threading.current_thread() is threading.main_thread():  # signals come to no other
        ours = [number for number in (signal.SIGINT, *_PREEMPTING) if _is_default(number)]
    before = {number: signal.signal(number, stop.note) for number in ours}
    try:
        yield stop
    finally:
        stop.forget()
        for number, handler in before.items():
            signal.signal(number, handler)


def last_word(code: int) -> None:
    """Let what is left of the process end with `code`, though signals come again while Python is
    shutting down.
    """
    if threading.current_thread() is threading.main_thread():
        for number in filter(_is_default, (signal.SIGINT, *_PREEMPTING)):
            signal.signal(number, lambda *_: os._exit(code))


def _is_default(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
