"""Errors that a user can act on.

Each names the setting, its value, the rule and the fix, and carries an exit code.
"""


class InCoError(Exception):
    """A run cannot start or go on. `exit_code` is what `run.py` ends with."""

    exit_code = 1


class ConfigError(InCoError):
    """A setting is wrong. `problems` holds one line for each, so that all are told at once."""

    exit_code = 2

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(InCoError):
    """A dataset or a partition file is missing, damaged or not what it claims to be."""

    exit_code = 3


class NumericError(InCoError):
    """A loss, an upload or an update is not finite; nothing of the round has been applied."""

    exit_code = 4


class StorageError(InCoError):
    """A record or a checkpoint cannot be written or read; the last good state is kept."""

    exit_code = 74


class WorkerError(InCoError):
    """A worker process failed or died; nothing of the round has been applied.

    `detail`: its traceback, for the log.
    """

    detail = ""


class PeerLost(WorkerError):
    """A collective broke off because another rank is gone; who and why is known elsewhere."""
