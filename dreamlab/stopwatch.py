"""Clocks that leave what they measure alone: of a device's updates, of a trainer's loop, of the memory held.

A GPU works through a queue, and waiting for it at each update would forbid what makes training fast; so marks are
events in that queue, read when all is over. Called by bench.py.
"""

import contextlib
import re
import time
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.profilers import Profiler

from dreamlab.callbacks import Updates, peak_gib

INSIDE = (".training_step", ".backward", ".optimizer_step")  # as Lightning's profiler calls them, after their owner
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Milliseconds between marks on a device's own time line."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note the moment at which all that was asked for so far is done."""
        if self.device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def laps_ms(self) -> list[float]:
        """From each mark to the next."""
        finish(self.device)
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self.device.type != "cuda":
            return [1e3 * (after - before) for before, after in pairs]
        return [float(before.elapsed_time(after)) for before, after in pairs]


def spread(values: list[float]) -> dict[str, float]:
    """Median, first and last decile, and mean."""
    deciles = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"median": median(values), "p10": deciles[0], "p90": deciles[-1], "mean": fmean(values)}


class LoopProfiler(Profiler):
    """Seconds inside training step, backward pass and optimizer step, once it is on; it waits for the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.is_on, self.inside_s = device, False, 0.0
        self._depth, self._since = 0, 0.0  # the optimizer's step holds the other two

    def start(self, action_name: str) -> None:
        if self.is_on and action_name.endswith(INSIDE):
            if not self._depth:
                self._since = time.perf_counter()
            self._depth += 1

    def stop(self, action_name: str) -> None:
        if self._depth and action_name.endswith(INSIDE):
            self._depth -= 1
            if not self._depth:
                finish(self.device)
                self.inside_s += time.perf_counter() - self._since


class Clock(Updates):
    """Times a trainer's updates: `warmup` unmeasured ones, `updates` that are, and `profiled` for the loop's share."""

    def __init__(self, device: torch.device, warmup: int, updates: int, profiled: int) -> None:
        self.device, self.warmup, self.updates, self.profiled = device, warmup, updates, profiled
        self.watch, self.profiler = Stopwatch(device), LoopProfiler(device)
        self.first_s: float | None = None  # time.perf_counter() at the end of the first update
        self.loop_ms: float | None = None  # an update's time outside of what LoopProfiler counts
        self._since = 0.0

    @property
    def steps(self) -> int:
        """Updates to train for."""
        return self.warmup + self.updates + self.profiled

    def on_update(self, trainer: Trainer, module: LightningModule, update: int) -> None:
        if update == 1:
            finish(self.device)
            self.first_s = time.perf_counter()
        measured = self.warmup + self.updates
        if self.warmup <= update <= measured:
            self.watch.mark()
        if update == measured:
            finish(self.device)
            self.profiler.is_on, self._since = True, time.perf_counter()
        if update == self.steps:
            outside_s = time.perf_counter() - self._since - self.profiler.inside_s
            self.loop_ms = 1e3 * outside_s / self.profiled


def forget_peak(device: torch.device) -> None:
    """Let `held_gib` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # Linux: the peak of resident memory becomes what is resident now


def held_gib(device: torch.device) -> float:
    """Most memory since `forget_peak`: allocated on a GPU; resident on a CPU, where only Linux can forget."""
    if device.type == "cpu":
        with contextlib.suppress(OSError, TypeError):
            found: Any = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
            return int(found[1]) / 2**20
    return peak_gib(device)
