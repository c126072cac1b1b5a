"""A run killed at many moments, as it trains and as it writes, ends as one that was left alone, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import are_identical, weights_of
from PIL import Image
from safetensors.torch import load_file

from dreamlab.runs import RunDirectory
from dreamlab.whole import is_temporary

STEPS, SEED = 56, 9
# Saves of every kind every few updates; only the text encoder learns, so that they are small and quick
WORDS = (
    f"steps={STEPS}", "save_every=2", "keep_states=2", "snapshot_every=2", "keep_snapshots=3", "sample_every=4",
    "adapter.train=[text_encoder]", "lr=1e-3",
)  # fmt: skip


def command(words: tuple[str, ...], log: Path) -> None:
    """`python -m dreamlab.train <words>`, in a process that has imported everything already."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from dreamlab.train import main

    sys.argv = ["dreamlab.train", *words]
    main()


def wait_for(event: Callable[[], bool], process: BaseProcess, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert process.is_alive() and time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.002)


def kill(process: BaseProcess, at: Callable[[], bool], latest: float = 0) -> None:
    """Kill it while `at()` holds: it stands still while that is looked at. At `latest` (monotonic seconds), anyway."""
    assert process.pid is not None
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        if at() or time.monotonic() > latest:
            break
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.001)
    process.kill()
    process.join()


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if is_temporary(path)]


def check_readable(run: RunDirectory) -> None:
    """Every file that has its own name can be read."""
    files = [path for path in run.path.rglob("*") if path.is_file() and not any(map(is_temporary, path.parents))]
    for path in files:
        if is_temporary(path):
            continue
        if path.suffix == ".ckpt":
            assert torch.load(path, weights_only=True)["dreamlab"]["update"] > 0
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def killed_at_random(
    run: RunDirectory, start: Callable[[], BaseProcess], log: Path, update_s: float, kills: int
) -> list[str]:
    """Start the command and kill it, `kills` times; returns what was being written at each kill."""
    moments, written = random.Random(SEED), []
    for number in range(kills):
        before = run.metrics.stat().st_mtime_ns if run.metrics.is_file() else None
        process = start()
        wait_for(lambda: run.metrics.is_file() and run.metrics.stat().st_mtime_ns != before, process, log)  # noqa: B023
        time.sleep(moments.uniform(0, 3 * update_s))
        if number % 2:  # as something is being written
            folder = run.path / moments.choice(["resume", "snapshots"])
            kill(process, lambda: any(map(is_temporary, folder.glob(".*"))), time.monotonic() + 5 * update_s)  # noqa: B023
        else:
            kill(process, lambda: True)
        assert process.exitcode == -9, "the run was over before it could be killed"
        written += [path.relative_to(run.path).as_posix() for path in temporaries(run.path)]
        check_readable(run)
    return written


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.thorough)])
def test_a_run_killed_at_many_moments_ends_as_one_left_alone(
    tiny: tuple[str, ...], tmp_path: Path, class_image_cache: Path, kills: int
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dreamlab.assemble", "dreamlab.train", "dreamlab.models.stable_diffusion"])
    alone, run, log = RunDirectory(tmp_path / "a" / "run"), RunDirectory(tmp_path / "b" / "run"), tmp_path / "log.txt"

    def start(which: RunDirectory) -> BaseProcess:
        words = (*tiny, *WORDS, "name=run", f"out={which.path.parent}", f"cache_dir={class_image_cache}")
        process = context.Process(target=command, args=(words, log))
        process.start()
        return process

    start(alone).join()
    assert alone.status().get("state") == "finished", log.read_text(encoding="utf-8")
    rows = alone.read_metrics()
    update_s = sorted(2 / row["perf/images_per_s"] for row in rows)[STEPS // 2]  # two images each
    written = killed_at_random(run, lambda: start(run), log, update_s, kills)
    print(f"half written at the kills: {written}")
    assert written, "some kills struck in the middle of a file"

    process = start(run)  # and once more, as the tuned model is written
    wait_for(lambda: any(run.path.glob(".model.*.tmp/*")), process, log)
    process.kill()
    process.join()
    start(run).join()

    assert run.status()["state"] == "finished", log.read_text(encoding="utf-8")
    assert temporaries(run.path) == [] and temporaries(class_image_cache) == []
    check_readable(run)
    assert are_identical(weights_of(run), weights_of(alone))
    assert [row["update"] for row in run.read_metrics()] == list(range(1, STEPS + 1))
    assert [row["train/loss"] for row in run.read_metrics()] == [row["train/loss"] for row in rows]
    names = [sorted(path.relative_to(one.path) for path in one.path.rglob("*")) for one in (run, alone)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.parts[0] in ("snapshots", "samples") and (run.path / name).is_file():
            assert (run.path / name).read_bytes() == (alone.path / name).read_bytes(), name
