"""Processes that start at once on an empty cache: one makes what all need, and one that dies holds nobody up."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings, start_command
from PIL import Image

from dreamlab import assemble, demo, feed, prior
from dreamlab.checks import check
from dreamlab.distill import CHUNK
from dreamlab.models import Family
from dreamlab.photos import list_images
from dreamlab.resume import Start
from dreamlab.sample import Sampler, draw
from dreamlab.schema import Train
from dreamlab.turns import one_at_a_time

HOLD = """
import pathlib, sys, time
from dreamlab.turns import one_at_a_time
with one_at_a_time(pathlib.Path(sys.argv[1])):
    print("inside", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_holder(folder: Path, log: Path, hold_s: float) -> "subprocess.Popen[bytes]":
    """A process that takes its turn in `folder`, says so in `log` and stays inside for a while."""
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-c", HOLD, folder, str(hold_s)], stdout=file, stderr=file)


def wait_until(event: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.02)


def says(log: Path, words: str) -> Callable[[], bool]:
    return lambda: words in log.read_text(encoding="utf-8")


def test_who_waits_is_told_and_goes_on_when_the_holder_is_killed(tmp_path: Path) -> None:
    folder, logs = tmp_path / "new" / "folder", [tmp_path / f"{number}.txt" for number in range(3)]
    holder = start_holder(folder, logs[0], 600)
    wait_until(says(logs[0], "inside"), logs[0])
    waiting, interrupted = (start_holder(folder, log, 0) for log in logs[1:])
    for log in logs[1:]:
        wait_until(says(log, f"Another process is making what is missing in {folder}: waiting."), log)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(10) != 0 and says(logs[2], "KeyboardInterrupt")()
    assert holder.poll() is None and waiting.poll() is None and "inside" not in logs[1].read_text(encoding="utf-8")
    holder.kill()
    assert waiting.wait(10) == 0 and says(logs[1], "inside")()
    assert [path.name for path in folder.iterdir()] == [".lock"] and list_images(folder) == []
    holder.wait()


def test_a_folder_that_cannot_be_locked_is_worked_in_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / ".lock").mkdir()
    entered = []
    for folder in (tmp_path, tmp_path / "file"):
        with one_at_a_time(folder):
            entered.append(folder)
    with pytest.raises(PermissionError, match="mine"), one_at_a_time(tmp_path):
        raise PermissionError("mine")
    assert len(entered) == 2


def two_images(model: Family, cache: Path) -> list[Path]:
    return prior.class_images(
        model, "a photo of a dog", 2, Sampler("ddim", 2, 5.0, "", 64, 64), 1, cache_dir=cache, own=(),
        device=torch.device("cpu"), precision="fp32", batch_size=2,
    )  # fmt: skip


def test_a_full_cache_is_used_without_a_lock(model: Family, tmp_path: Path) -> None:
    made = two_images(model, tmp_path)
    lock = made[0].with_name(".lock")
    assert list_images(lock.parent) == made
    lock.unlink()
    assert two_images(model, tmp_path) == made and not lock.exists()


def test_a_full_cache_may_be_read_only(model: Family, tmp_path: Path) -> None:
    made = two_images(model, tmp_path)
    folder = made[0].parent
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("permissions don't bind this user")
        assert two_images(model, tmp_path) == made
        folder.chmod(0o700)
        made[1].unlink()
        folder.chmod(0o500)
        with pytest.raises(PermissionError):
            two_images(model, tmp_path)
    finally:
        folder.chmod(0o700)


def test_the_demos_photos_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready = [], threading.Barrier(4)
    chelsea = demo._chelsea
    monkeypatch.setattr(demo, "_chelsea", lambda: made.append(1) or chelsea())

    def ask() -> None:
        ready.wait()
        demo.demo_photos(tmp_path / "demo")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(list_images(tmp_path / "demo")) == len(demo.CROPS)


def feed_counted(config: Train, done: Path, ready: Any) -> None:
    """Prepare a run's class images, latents and teacher as the command does, and write a line for each thing made."""

    def tell(what: str, count: int) -> None:
        with done.open("a", encoding="utf-8") as file:
            file.write(f"{what}\n" * count)

    def draw_counted(model: Family, prompts: list[str], *given: Any, **more: Any) -> None:
        tell("drawn", len(prompts))
        draw(model, prompts, *given, **more)

    def encode_counted(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tell("encoded", len(pixels))
        time.sleep(0.3)  # as long as at full size, so that the processes meet
        return encode(pixels)

    config, subject = check(config)
    model = assemble.base_model(config)
    encode, predict = model.encode_images, model.predict
    prior.draw, model.encode_images = draw_counted, encode_counted
    model.predict = lambda *given: tell("predicted", 1) or predict(*given)
    ready.wait(120)
    sets = feed.image_sets(config, subject, model)
    feed.batches(config, sets, Start(""), assemble.module(config, model))


@pytest.mark.slow
def test_class_images_latents_and_teacher_are_made_once_by_two_processes(settings: Settings, tmp_path: Path) -> None:
    context, done = multiprocessing.get_context("spawn"), tmp_path / "done.txt"
    config, ready = settings("prior=distill", "accumulate=2", f"cache_dir={tmp_path / 'cache'}"), context.Barrier(2)
    processes = [context.Process(target=feed_counted, args=(config, done, ready)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    photos, drawn = 3, config.num_prior_images
    made = Counter(done.read_text(encoding="utf-8").split())
    assert made == {"drawn": drawn, "encoded": photos + drawn, "predicted": CHUNK * config.accumulate}


@pytest.mark.slow
def test_two_commands_on_one_empty_cache_share_what_one_of_them_makes(tiny: tuple[str, ...], tmp_path: Path) -> None:
    logs = [tmp_path / f"{number}.txt" for number in range(2)]
    given = (*tiny, "prior=distill", "num_prior_images=4", f"cache_dir={tmp_path / 'cache'}")
    processes = [
        start_command("dreamlab.train", *given, f"lr=1e-{5 + number}", f"out={tmp_path / str(number)}", log=log)
        for number, log in enumerate(logs)
    ]
    codes = [process.wait(300) for process in processes]
    lines = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    assert codes == [0, 0], "\n".join(lines)
    images = list((tmp_path / "cache" / "prior").rglob("*.png"))
    assert len(images) == 4
    for path in images:
        Image.open(path).load()
    for bar in ("class images", "teacher"):  # shown by who makes them
        assert sum(line.startswith(f"{bar} ") for line in lines) == 1, "\n".join(lines)
