"""An offline W&B run, read back through W&B's own record schema: what it must hold, and what it must not.

W&B's Python reader of `.wandb` files went when its core moved to Go; the framing that it read, a LevelDB log, is
undone here, and each record is parsed by W&B's own protobuf class.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import start_command
from wandb.proto.wandb_internal_pb2 import Record

from dreamlab.runs import RunDirectory

KEY, TOKEN = "0123456789abcdef0123456789abcdef01234567", "hf_ThisIsNoTokenButLooksLikeOneToAScanner"


def records(file: Path) -> Iterator[Any]:
    """Every record of a .wandb file: a 7-byte header, then 32 KiB blocks of (crc, length, type, payload) chunks."""
    data, at, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too little for a chunk's header: the rest of the block is padding
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + 7])
        payload = data[at + 7 : at + 7 + length]
        assert crc == zlib.crc32(bytes([kind]) + payload), "a damaged record"
        at, whole = at + 7 + length, whole + payload
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def values(items: Any) -> dict[str, Any]:
    """The JSON values of a config or history record, by their (dotted) keys."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of the command line with keys in its environment and W&B kept offline."""
    folder = tmp_path_factory.mktemp("wandb")
    log = folder / "log.txt"
    process = start_command(
        "dreamlab.train", *tiny, "logger=wandb", "name=watched", "lr=2e-5", f"out={folder / 'outputs'}",
        log=log, WANDB_MODE="offline", WANDB_API_KEY=KEY, HF_TOKEN=TOKEN, SOME_PASSWORD="correct horse battery",
    )  # fmt: skip
    assert process.wait(180) == 0, log.read_text(encoding="utf-8")
    return RunDirectory(folder / "outputs" / "watched")


@pytest.fixture(scope="module")
def logged(run: RunDirectory) -> list[Any]:
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    return list(records(file))


@pytest.mark.slow
def test_both_losses_of_every_update_are_logged(run: RunDirectory, logged: list[Any]) -> None:
    rows = [values(record.history.item) for record in logged if record.WhichOneof("record_type") == "history"]
    measured = [row for row in rows if "train/loss_prior" in row]
    assert len(measured) == 2
    for row, written in zip(measured, run.read_metrics(), strict=True):
        for name in ("train/loss", "train/loss_instance", "train/loss_prior", "train/grad_norm"):
            assert row[name] == written[name] and math.isfinite(row[name]) and row[name] > 0
        assert row["train/loss"] == pytest.approx(row["train/loss_instance"] + row["train/loss_prior"])


@pytest.mark.slow
def test_samples_of_before_and_after_are_logged_with_captions(run: RunDirectory, logged: list[Any]) -> None:
    rows = [values(record.history.item) for record in logged if record.WhichOneof("record_type") == "history"]
    shown = [row for row in rows if "samples.filenames" in row]
    assert [row["samples._type"] for row in shown] == ["images/separated"] * 2
    assert shown[0]["samples.captions"] == ["a photo of a zwx dog | seed 52362"]
    for row in shown:
        (file,) = run.path.glob(f"wandb/offline-run-*/files/{row['samples.filenames'][0]}")
        assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_settings_are_logged(logged: list[Any]) -> None:
    config: dict[str, Any] = {}
    for record in logged:
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            config |= values((record.run.config if kind == "run" else record.config).update)
    assert config["lr"] == 2e-5 and config["steps"] == 2 and config["prior_weight"] == 1.0
    assert config["instance_prompt"] == "a photo of a zwx dog"


@pytest.mark.slow
def test_no_key_token_or_password_is_anywhere_in_the_run(run: RunDirectory) -> None:
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in (KEY, TOKEN, "correct horse battery"):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
