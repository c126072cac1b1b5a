"""A hub that accepts and never answers: one line, then what was fetched before, and soon."""

import socket
import time

import pytest
from huggingface_hub import constants

from dreamlab import encoders, hub
from dreamlab.errors import UserError
from dreamlab.models import load


def test_a_silent_hub_is_asked_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "WAIT_S", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.go_offline_if_silent.cache_clear()
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            began = time.monotonic()
            with pytest.raises(UserError, match="Could not load the model 'nobody/nothing'"):
                load("stable_diffusion", "nobody/nothing")
            with pytest.raises(UserError, match="dino"):
                encoders.load("dino")
            assert time.monotonic() - began < 20
    finally:
        hub.go_offline_if_silent.cache_clear()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("The hub")]
    assert len(told) == 1 and "does not answer (timed out): only what was fetched before is used." in told[0]
