"""One run of a training: what is watched of it, up to its own last update, and how it ends.

A training usually has one run. In a sweep, runs that differ in `steps` alone, or in what is shown, are one training:
each is followed as if it were alone, and the shorter ones end while it goes on. Called by train.py.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from dreamlab import assemble, learning, loggers, measuring, prefixes, report, verdict
from dreamlab.average import Average
from dreamlab.callbacks import Samples
from dreamlab.drawn import Drawn
from dreamlab.encoders import Encoder
from dreamlab.models import Family
from dreamlab.module import DreamBooth
from dreamlab.moments import Moments
from dreamlab.probes import Probes
from dreamlab.processes import is_shared_out
from dreamlab.resume import Start
from dreamlab.runlog import RunLog
from dreamlab.runs import write_json
from dreamlab.schema import Train
from dreamlab.subject import Subject


class Following:
    """A run while it is trained; `encoders` loads those that measure it."""

    def __init__(self, config: Train, subject: Subject, log: RunLog, encoders: Callable[[str], Encoder]) -> None:
        self.config, self.subject, self.log, self.run = config, subject, log, log.run
        self.is_over = False
        assemble.record(config, subject, self.run)
        self.judge = measuring.judge(config, subject, self.run, encoders)
        self.samples: Samples
        self.moments: Moments | None = None
        self.probes: Probes | None = None
        self.average: Average | None = None
        self._began = time.perf_counter()

    def begin(self, start: Start, module: DreamBooth, average: Average | None, drawn: Drawn) -> None:
        """Open the logger and look at the model, which must be untouched now."""
        config, subject, model = self.config, self.subject, module.model
        self.average = average
        self.log.logger = assemble.logger(config, subject, self.run)
        prefixes.take_over(config, self.log, start)
        self.run.rewind(start.update)
        self.samples = assemble.samples(config, subject, self.log, model, average, drawn)
        if not self.samples.is_taken(0):
            self.samples.keep(0, measuring.untouched(config, self.samples, model))
        if self.judge:
            self.moments = measuring.moments(config, subject, self.log, model, self.judge, average, drawn)
            if not self.moments.is_taken(0):
                self.moments.keep(0, self.moments.base)
        self.probes = measuring.probes(config, subject, self.log, module)
        if self.probes and not self.run.probes.rows():
            self.probes.take(0)

    def watching(self) -> list[Callback]:
        """What looks on as it is trained."""
        snapshots = assemble.snapshots(self.config, self.subject, self.log, self.average)
        watches = (self.samples, self.moments, self.probes, snapshots)
        return [watch for watch in watches if watch is not None]

    @property
    def stopped_by(self) -> str | None:
        """Why training was ended early, if it was."""
        return self.moments.stopped_by if self.moments else None

    def conclude(self, model: Family, reached: int) -> None:
        """What is done with the weights of the last update: samples, the last moment, the model's folder, a verdict."""
        config, samples, moments, average = self.config, self.samples, self.moments, self.average
        if is_shared_out(config.trainer.devices, config.trainer.strategy):
            model, average = assemble.gathered(config, self.run), None
            samples = assemble.samples(config, self.subject, self.log, model, None, Drawn())
            moments = None  # they are bound to a model that is in pieces
        samples.take(reached)
        if moments and not moments.is_taken(reached):
            moments.take(reached)
        with average.in_use() if average else contextlib.nullcontext():
            learning.save_model(config, self.subject, self.run, model, reached)
        if self.subject.sample_prompts:
            report.draw_grid(self.run, self.run.grid)
        if moments:
            write_json(self.run.verdict, verdict.judge(self.run.evaluations.rows(), self.run.probes.rows()).as_json())
        told = {"stopped_early": self.stopped_by} if self.stopped_by else {}
        seconds = time.perf_counter() - self._began
        self.run.set_status("finished", update=reached, signature=self.log.signature, seconds=seconds, **told)
        self.is_over = True
        self.close()

    def close(self) -> None:
        """Finish the run at its logger."""
        logger, self.log.logger = self.log.logger, None
        loggers.close(logger, self.is_over)


class Conclusions(Callback):
    """Ends runs that are shorter than their training between two updates, as it goes on."""

    def __init__(self, followed: Sequence[Following]) -> None:
        self.followed = followed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Before the update after a run's last one, when its snapshot and state are written."""
        module: Any = pl_module
        for run in self.followed:
            if not run.is_over and run.log.steps == trainer.global_step:
                run.conclude(module.model, trainer.global_step)
