"""Files that appear whole or not at all, and what is left of those that a killed process didn't finish."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreamlab.whole import discard, sweep, written_whole


def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with written_whole(tmp_path / "deep" / "folder") as temporary:
            (temporary / "sub").mkdir(parents=True)
            (temporary / "sub" / text).write_text(text)
    assert [path.name for path in (tmp_path / "deep" / "folder" / "sub").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


def test_what_is_renamed_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(Path(f"/proc/self/fd/{fd}").resolve().name), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("renamed"), replace(*names)))
    with written_whole(tmp_path / "state", flush=True) as temporary:
        temporary.write_text("weights")
    assert seen == [temporary.name, "renamed", tmp_path.name]


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    gone, mine, other = dead(), os.getpid(), os.getppid()
    left = [tmp_path / f".state.ckpt.{pid}.tmp" for pid in (gone, mine)]
    kept = [
        tmp_path / f".a.png.{other}.tmp",
        tmp_path / f"report.{gone}.tmp",
        tmp_path / ".mine.tmp",
        tmp_path / "model",
    ]
    for path in (*left, *kept):
        path.write_text("half")
    folder = tmp_path / "samples" / f".update-000004.{gone}.tmp"
    folder.mkdir(parents=True)
    (folder / f".0000.png.{gone}.tmp").write_text("half")
    sweep(tmp_path, older_than_s=60)
    assert all(path.exists() for path in (*left, *kept, folder)), "these are young"
    old = time.time() - 100
    os.utime(left[0], (old, old))
    sweep(tmp_path, older_than_s=60)
    assert not left[0].exists() and left[1].exists()
    ahead = time.time() + 1e6
    os.utime(left[1], (ahead, ahead))  # written before the clock was put back, or by a server whose clock is ahead
    sweep(tmp_path, older_than_s=60)
    assert left[1].exists()
    sweep(tmp_path)
    assert all(path.exists() for path in kept)
    assert not folder.exists() and not left[1].exists()


def test_discarding_removes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for name in ("file", "folder", "nothing"):
        discard(tmp_path / name)
    assert not list(tmp_path.iterdir())
