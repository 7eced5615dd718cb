"""Whether W&B would find credentials and a server, told without a prompt or a long wait."""

import os
import threading
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen


def has_key(url: str) -> bool:
    """Say whether W&B would find credentials. They are looked for, never kept or shown."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        # internal: the public wandb.login and wandb.Api may ask for a key, or change the session
        from wandb.sdk.lib import wbauth

        return wbauth.read_netrc_auth(host=url) is not None
    # a malformed key, or a wandb that moved its lookup: online could stop to ask, so stay offline
    except Exception:
        return False


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
    """Give an error as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
