"""A W&B server that doesn't answer, says no, or falls silent: the run goes on, with one line, in bounded time."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from conftest import Settings
from wandb_files import history, records

from dreamlab import loggers
from dreamlab.loggers import close, make_logger
from dreamlab.train import train

KEY = "0123456789abcdef0123456789abcdef01234567"
BUCKET = {
    "id": "abc", "name": "run", "displayName": "run", "description": "", "config": "{}", "historyLineCount": 0,
    "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}},
}  # fmt: skip

DATA = {  # what W&B's program needs to hear to take a run for opened
    "upsertBucket": {"bucket": BUCKET, "inserted": True},
    "createRunFiles": {"runID": "abc", "uploadHeaders": [], "files": []},
    "viewer": {"id": "x", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
    "QueryType": {"fields": []}, "MutationType": {"fields": []}, "ServerInfoType": {"fields": []}, "model": None,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Accepts whatever comes and, while it is `silent`, answers nothing; it `refuses` with 401."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.may_speak, self.refuses = threading.Event(), False


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.may_speak.wait()
        content = json.dumps({"data": DATA}).encode()
        self.send_response(401 if self.server.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # who asked may have given up
            self.end_headers()
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """W&B's program keeps the first address and key that it is given, so each test has one of its own."""
    wandb.teardown()
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(loggers, "START_S", 3.0)
    monkeypatch.setattr(loggers, "FINISH_S", 3.0)
    monkeypatch.setattr(loggers, "_given_up", [])
    yield server
    server.refuses = False
    server.may_speak.set()  # or W&B's program would wait for an answer before it ends
    wandb.teardown()
    server.shutdown()


def logged_below(folder: Path) -> list[float]:
    """The losses in the files of W&B's run, once they are there: another process writes them."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until, found = time.monotonic() + 10, list[float]()
    while not found and time.monotonic() < until:
        time.sleep(0.05)
        found = [row["train/loss"] for row in history(list(records(file))) if "train/loss" in row]
    return found


@pytest.mark.parametrize("mood", ["silent", "refusing"])
def test_a_server_that_opens_no_run_is_done_without(
    server: Server, mood: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if mood == "refusing":
        server.refuses = True
        server.may_speak.set()
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        began = time.monotonic()
        logger = make_logger("wandb", tmp_path / name, name, "dreamlab", "auto")
        assert time.monotonic() - began < (15, 3)[number], "the second run doesn't ask again"
        assert logger is not None
        logger.log_metrics({"train/loss": 0.5 + number}, step=1)
        close(logger, succeeded=True)
        assert logged_below(tmp_path / name) == [0.5 + number]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("W&B")]
    assert len(told) == 1 and "is not to be had (" in told[0] and "`wandb sync`" in told[0] and KEY not in told[0]


def test_a_server_that_falls_silent_does_not_hold_the_end_up(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.may_speak.set()
    logger = make_logger("wandb", tmp_path, "run", "dreamlab", "auto")
    assert isinstance(logger, loggers.WandbLogger) and not logger.experiment.offline
    server.may_speak.clear()
    for update in (1, 2):
        logger.log_metrics({"train/loss": update / 2}, step=update)
    began = time.monotonic()
    close(logger, succeeded=True)
    assert time.monotonic() - began < 20
    assert "W&B is not to be had (Timed out finishing run)" in capsys.readouterr().err


def test_a_key_of_another_form_is_a_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    close(make_logger("wandb", tmp_path, "run", "dreamlab", "auto"), succeeded=True)
    said = capsys.readouterr().err
    assert "W&B is not to be had (" in said and "not a key" not in said


@pytest.mark.slow
def test_a_run_outlives_the_program_that_w_and_b_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    tell = loggers.LastingWandbLogger._attempt

    def killed_at_the_third(self: Any, act: Any, *values: Any, **named: Any) -> None:
        if named.get("step") == 3 and not self.is_dead:
            for process in psutil.Process().children():
                if "wandb-core" in process.name():
                    process.kill()
                    process.wait()
        tell(self, act, *values, **named)

    monkeypatch.setattr(loggers.LastingWandbLogger, "_attempt", killed_at_the_third)
    words = ("logger=wandb", "steps=5", "sample_every=5", "adapter=lora", "eval=none")
    for name in ("first", "second"):
        run = train(settings(*words, f"name={name}"))
        assert run.status()["state"] == "finished" and len(run.read_metrics()) == 5
    said = capsys.readouterr().err
    assert said.count("W&B's own program has died (") == 2 and "Traceback" not in said
