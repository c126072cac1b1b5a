"""One line of metrics.jsonl for each update, and the same numbers to the logger.

On a GPU nobody waits for a number: those of an update are copied to the CPU as the next ones run, and written when they
have arrived, all of them at the latest before a state is kept and at the end. Called by assemble.py.
"""

import time
from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from dreamlab.callbacks import Updates, peak_gib
from dreamlab.finiteness import Finiteness
from dreamlab.runlog import RunLog

MOST_WAITING = 8  # updates whose numbers are under way; more of them and the CPU waits, so that Ctrl-C is quick


class Waiting(NamedTuple):
    """An update's numbers, on their way to the CPU."""

    update: int
    samples: Tensor  # (3, N): errors, timesteps, whether it is a prior sample
    named: Tensor  # (K,) values of `names`
    names: list[str]
    known: dict[str, float]
    done: Any  # a CUDA event; None: they are here
    time_s: float


class Metrics(Updates):
    """Writes the numbers of every update into the logs of all runs that aren't over by then."""

    def __init__(self, logs: Sequence[RunLog], images_per_update: int) -> None:
        self.logs, self.images_per_update = logs, images_per_update
        self._waiting: deque[Waiting] = deque()
        self._since_s = 0.0
        self._before: Any = None
        self._finiteness = Finiteness()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if torch.cuda.is_available():  # what sampling class images took is not what training takes
            torch.cuda.reset_peak_memory_stats()
        self._since_s, self._before = time.perf_counter(), _mark(pl_module.device)

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        errors, timesteps, is_prior = (torch.cat(parts) for parts in zip(*module.losses, strict=True))
        module.losses.clear()
        if trainer.world_size > 1:  # every process has as many samples
            errors, timesteps, is_prior = (module.all_gather(one).flatten() for one in (errors, timesteps, is_prior))
        numbers = {"train/grad_norm": module.grad_norm}
        numbers |= getattr(trainer.precision_plugin, "numbers", dict)()  # of fp16's scaler
        known = {**module.rates, "perf/peak_gib": peak_gib(module.device)}
        self._waiting.append(Waiting(
            update, torch.stack([errors.double(), timesteps.double(), is_prior.double()]).to("cpu", non_blocking=True),
            torch.stack([value.to(module.device).double() for value in numbers.values()]).to("cpu", non_blocking=True),
            list(numbers), known, _mark(module.device), time.perf_counter(),
        ))  # fmt: skip
        self._write(trainer, module, MOST_WAITING)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that goes on from this state finds all numbers up to it."""
        self._write(trainer, pl_module, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left behind."""
        self._write(trainer, pl_module, 0)

    def _write(self, trainer: Trainer, module: Any, most: int) -> None:
        """Write what has arrived, and wait for the oldest while more than `most` are under way."""
        while self._waiting:
            oldest = self._waiting[0]
            if oldest.done is not None:
                if len(self._waiting) > most:
                    oldest.done.synchronize()
                elif not oldest.done.query():
                    return
            self._waiting.popleft()
            row = self._row(oldest, module)
            module.record = row
            for log in self.logs if trainer.is_global_zero else ():
                if oldest.update <= log.steps:
                    log.run.append_metrics({"update": oldest.update, **row})
                    if log.logger is not None:
                        log.logger.log_metrics(row, step=oldest.update)
            self._finiteness.check(oldest.update, row)  # written all the same: it shows what broke

    def _row(self, arrived: Waiting, module: Any) -> dict[str, float]:
        errors, timesteps, is_prior = arrived.samples.tolist()
        took_s = arrived.time_s - self._since_s
        if arrived.done is not None:
            took_s = self._before.elapsed_time(arrived.done) / 1000
        self._since_s, self._before = arrived.time_s, arrived.done
        losses = mean_losses(
            errors, timesteps, is_prior, module.objective.prior_weight, len(module.model.schedule)
        )  # fmt: skip
        named = dict(zip(arrived.names, arrived.named.tolist(), strict=True))
        return {**losses, **named, **arrived.known, "perf/images_per_s": self.images_per_update / max(took_s, 1e-9)}


def _mark(device: torch.device) -> Any:
    """A point in the GPU's queue; None on a CPU, where all is done when it is asked for."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def mean_losses(
    errors: Sequence[float], timesteps: Sequence[int], is_prior: Sequence[bool], prior_weight: float,
    num_train_timesteps: int,
) -> dict[str, float]:  # fmt: skip
    """The loss, its halves, and each half by quarters of the noise schedule, from an update's samples.

    Quarter 1 holds the least noise. A quarter or a half without a sample has no entry, but for the prior's loss: 0.
    """
    quarters = [int(step) * 4 // num_train_timesteps + 1 for step in timesteps]
    told = list(zip(errors, quarters, is_prior, strict=True))
    halves = {name: [(e, q) for e, q, p in told if p == (name == "prior")] for name in ("instance", "prior")}
    mean = {name: fmean(error for error, _ in half) if half else 0.0 for name, half in halves.items()}
    row = {
        "train/loss": mean["instance"] + prior_weight * mean["prior"],
        "train/loss_instance": mean["instance"], "train/loss_prior": mean["prior"],
    }  # fmt: skip
    for name, half in halves.items():
        for quarter in sorted({quarter for _, quarter in half}):
            row[f"train/loss_{name}_q{quarter}"] = fmean(error for error, of in half if of == quarter)
    return row
