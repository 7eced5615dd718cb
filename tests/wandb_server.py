"""A W&B server of our own on this machine, and no account."""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("wandb")
WANDB = Path(sys.executable).with_name("wandb")
# 2 x 2, grey
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGMQUGAwcAAAAXYAoewwivQAAAAASUVORK5CYII="
KEY = "0123456789abcdef" * 2 + "deadbeef"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """A home without credentials, and no W&B settings from outside."""
    for name in [
        name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING"
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/.netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home/config"))
    (tmp_path / "home").mkdir()
    yield
    import wandb

    wandb.teardown()  # its settings outlive the environment variables of a test


def graphql(asked, upload):
    """Answer the few questions that W&B asks to let a run in."""
    given, answer = asked["variables"], {}
    project = {"id": "1", "name": "inco", "entity": {"id": "1", "name": "me"}}
    if "mutation UpsertBucket" in asked["query"]:
        run = {
            "id": "1",
            "name": given.get("name"),
            "displayName": "a",
            "historyLineCount": 0,
            "project": project,
        }
        answer = {"upsertBucket": {"bucket": run, "inserted": True}}
    elif "mutation CreateRunFiles" in asked["query"]:
        files = [{"name": name, "uploadUrl": upload} for name in given["files"]]
        answer = {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
    elif "query RunResumeStatus" in asked["query"]:
        answer = {"model": {**project, "bucket": None}}
    return json.dumps({"data": answer}).encode()


@pytest.fixture
def server():
    """Serve a front page and stall, or say 503, or (with `lets_in`) let runs in and then stall on
    their data.
    """
    made = []

    def serve(front, lets_in=False):
        class Handler(BaseHTTPRequestHandler):
            def reply(self, code, body=b""):
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.reply(front)

            def do_POST(self):
                asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if lets_in and "graphql" in self.path:
                    self.reply(
                        200, graphql(json.loads(asked), f"http://127.0.0.1:{http.server_port}/up")
                    )
                else:
                    stop.wait(30)

            do_PUT = do_POST

            def log_message(self, *_):
                pass

        stop = threading.Event()
        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        made.append((http, stop))
        return f"http://127.0.0.1:{http.server_port}"

    yield serve
    for http, stop in made:
        stop.set()
        http.shutdown()
        http.server_close()
