"""What the W&B tracker needs around a run: the module, credentials, the server, a run's files."""

import logging
import math
import netrc
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from inco.records.record import atomic_write

QUIET: dict[str, Any] = {
    "silent": True,
    "quiet": True,
    "console": "off",
}  # our stdout is left alone


def wandb_mode(asked: str) -> str:
    """Let `WANDB_MODE`, which users and clusters set, decide where the setting is auto."""
    if asked != "auto":
        return asked
    mode = os.environ.get("WANDB_MODE", "").lower() or "auto"
    return "offline" if mode == "dryrun" else mode


def import_wandb() -> Any:
    """Import wandb and silence its console lines, those before a run has settings included."""
    # W&B's reports of its own errors would hold us up by 10 s and more when the server is down
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # it has files of its own; Hydra's root logger would print every line
    logging.getLogger("wandb").propagate = False
    wandb.setup(settings=wandb.Settings(**QUIET))
    return wandb


def drop_service(wandb: Any) -> None:
    """Let go of W&B's service, which may be dead: the next job of a sweep gets a new one."""

    def drop() -> None:
        with suppress(Exception):
            wandb.teardown()

    # it can wait for uploads, so it is left behind
    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(2.0)


def run_id_of(folder: Path) -> str:
    """Return the W&B id of a run's folder, made once: a resumed run goes on under the same id."""
    path = folder / "wandb_id"
    if path.is_file() and (known := path.read_text().strip()):
        return known
    made = secrets.token_hex(4)
    atomic_write(path, made + "\n")
    return made


def files_of(started: Any) -> Path:
    """Return the folder of a W&B run's own files, short where it is below the working directory."""
    path = Path(started.dir).parent
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def summary_value(value: Any) -> Any:
    """Write a non-finite number as None: W&B's summary has no other way to show it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def has_key(url: str) -> bool:
    """Say whether W&B would find credentials in the environment or ~/.netrc; none is kept."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(path).authenticators(urlsplit(url).netloc)
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return bool(found and found[2])


def no_answer(url: str, seconds: float) -> str | None:
    """Say why the server does not answer within `seconds`, or None if it does."""
    parts = urlsplit(url)
    host = parts.hostname or url  # never the whole URL, which can hold a password
    answer = [f"{host} did not answer within {seconds:g} s"]

    def probe() -> None:
        try:
            with urlopen(url, timeout=seconds):
                answer[0] = ""
        except HTTPError as error:  # the server speaks; only 5xx says that it is out of order
            answer[0] = f"{host} answered {error.code}" if error.code >= 500 else ""
        except Exception as error:
            answer[0] = f"{host} not reachable: {short(getattr(error, 'reason', error))}"

    # a name lookup takes no timeout, so it is left behind
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] or None


def short(error: object) -> str:
    """Return an error as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
