"""Reads what an offline W&B run wrote, through W&B's own record schema.

W&B's Python reader of `.wandb` files went when its core moved to Go; the framing that it read, a LevelDB log, is
undone here, and each record is parsed by W&B's own protobuf class.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


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


def records_below(folder: Path) -> list[Any]:
    """The records of the one run below a folder, once its last one is there: W&B's own process writes them."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 20
    while True:
        found = list(records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > until:
            return found
        time.sleep(0.1)


def values(items: Any) -> dict[str, Any]:
    """The JSON values of a config, history or summary record, by their (dotted) keys."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def run_of(logged: Sequence[Any]) -> Any:
    """The record that says what the run is: its name, group, job type and tags."""
    return [record.run for record in logged if record.WhichOneof("record_type") == "run"][-1]


def history(logged: Sequence[Any]) -> list[dict[str, Any]]:
    """What was logged, in order."""
    return [values(record.history.item) for record in logged if record.WhichOneof("record_type") == "history"]


def table(folder: Path, row: dict[str, Any], key: str) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table that a row of the history names."""
    (file,) = folder.glob(f"wandb/offline-run-*/files/{row[f'{key}.path']}")
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["columns"], content["data"]


def summary(logged: Sequence[Any]) -> dict[str, Any]:
    """The run's summary as it was in the end."""
    found: dict[str, Any] = {}
    for record in logged:
        if record.WhichOneof("record_type") == "summary":
            found |= values(record.summary.update)
    return found
