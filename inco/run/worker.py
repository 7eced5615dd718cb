"""One local worker, started as `python -m inco.run.worker`: the same rounds as rank 0, without a
record.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from inco.errors import InCoError
from inco.run.launch import follow, prepare


def main(rank: int, world: int, store: str) -> None:
    """Be rank `rank` of `world`, met in the file `store`; settings come by standard input."""
    settings = json.load(sys.stdin)
    # sent to all processes by a batch system; rank 0 decides when to end
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    prepare()
    Path(store).with_name(f"worker_{rank}.ready").touch()
    try:
        follow(settings, rank, world, store)
    except InCoError as error:  # shown to the user where it is the error of one worker alone
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
