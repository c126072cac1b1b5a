"""A disk that is full, or may not be written: one sentence, nothing half-written, and what was there before is good.

The operating system's own limit on a file's size stands in for the full disk: it ends a write in the middle, too.
"""

import contextlib
import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings
from safetensors.torch import save_file

from dreamlab import checkpoints
from dreamlab.checks import check
from dreamlab.errors import AlreadyTold, UserError, explained
from dreamlab.latents import LatentCache
from dreamlab.photos import UPRIGHT, Region
from dreamlab.runs import JsonLines, RunDirectory
from dreamlab.train import train
from dreamlab.whole import is_temporary, written_whole

BYTES = 100_000


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "small.json").write_text("{}")
    save_file({"weights": torch.zeros(BYTES)}, path / "weights.safetensors")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: path.write_bytes(bytes(4 * BYTES)),
    "torch": lambda path: torch.save({"weights": torch.zeros(BYTES)}, path),
    "safetensors": lambda path: save_file({"weights": torch.zeros(BYTES)}, path),
    "folder": write_folder,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_does_not_fit_is_an_error_of_the_disk_and_leaves_the_old(kind: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("good")
    with room_for(BYTES), pytest.raises(OSError) as full, written_whole(tmp_path / "old") as temporary:
        WRITERS[kind](temporary)
    assert full.value.errno == errno.EFBIG and full.value.filename == str(tmp_path / "old")
    assert files_in(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "good"


def test_any_other_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), written_whole(tmp_path / "new") as temporary:
        temporary.write_text("half")
        raise RuntimeError("shape")
    assert files_in(tmp_path) == []


def test_a_full_disk_and_a_foreign_folder_are_a_sentence_and_a_bug_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, explained(), open("/dev/full", "w") as file:
        file.write("x" * 10_000)
    assert ended.value.code == 2 and "No space left on device). Make room" in capsys.readouterr().err
    with pytest.raises(AlreadyTold), explained(in_sweep=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/their/run")
    assert capsys.readouterr().err.startswith("dreamlab: /their/run cannot be written or read (Permission denied).")
    with pytest.raises(FileNotFoundError), explained():
        open("/nowhere/at/all").close()


def test_a_line_that_does_not_fit_is_passed_over_later(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    with room_for(50), pytest.raises(OSError) as full:
        for update in range(9):
            lines.append({"update": update, "loss": 0.5})
    assert full.value.filename == str(lines.path)
    assert lines.rows() == [{"update": 0, "loss": 0.5}]


def test_latents_that_cannot_be_kept_are_used_all_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = torch.full((1, 4, 8, 8), 0.5), torch.ones(1, 4, 8, 8)
    cache = LatentCache(tmp_path / "latents", {}, UPRIGHT, lambda pixels: encoded)
    with room_for(1000):
        for name in ("0.png", "1.png"):
            mean, std = cache.moments(photos / name, Region(64, 64), torch.zeros(1, 3, 64, 64))
            assert torch.equal(mean, encoded[0]) and torch.equal(std, encoded[1])
    told = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert len(told) == 1 and "File too large): every run will encode" in told[0]
    assert set(files_in(tmp_path)) <= {".lock"}


def test_a_run_whose_disk_fills_up_goes_on_from_its_last_state(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "steps=3", "save_every=1", "keep_states=2", "adapter=lora", "prompts=[]", "prior=none", "name=run",
        f"out={tmp_path}",
    )  # fmt: skip
    run, say, limit = (
        RunDirectory(tmp_path / "run"),
        checkpoints.ResumeState._say,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )

    def say_and_fill(*given: Any) -> None:
        say(*given)
        resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, limit[1]))

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(checkpoints.ResumeState, "_say", say_and_fill)
        try:
            with explained():
                train(settings(*words))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dreamlab: ")]
    assert ended.value.code == 2 and len(said) == 1
    assert f"{run.state(2)} cannot be written or read (File too large)" in said[0]
    assert run.states() == [run.state(1)] and torch.load(run.state(1), weights_only=True)["dreamlab"]["update"] == 1
    assert not any(is_temporary(path) for path in run.path.rglob(".*")) and run.status()["state"] == "failed"
    assert train(settings(*words)).status()["state"] == "finished"
    assert [row["update"] for row in run.read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize("key", ["out", "cache_dir"])
def test_a_folder_that_may_not_be_written_is_named_before_anything_loads(
    settings: Settings, key: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{key}=/proc cannot be written \(.*\)\. Choose another place: {key}="):
        check(settings(f"{key}=/proc"))  # where not even root can make a file
    began = time.time()
    check(settings(f"{key}={tmp_path / 'new'}"))
    assert files_in(tmp_path) == [] and (tmp_path / "new").stat().st_mtime >= began - 2


def test_a_name_that_is_too_long_is_a_sentence(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explained():
        train(settings(f"name={'x' * 300}"))
    assert "File name too long" in capsys.readouterr().err
