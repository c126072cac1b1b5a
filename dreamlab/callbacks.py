"""What happens beside training: progress, metrics, samples, and a clean end on Ctrl-C.

None of these touches the weights, the gradients or a random state, so training is the same with and without them. An
"update" is one optimizer step; the trainer calls hooks per micro-batch, and `Updates` tells the two apart.
"""

import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL.Image import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from dreamlab.loggers import log_images
from dreamlab.pictures import save_png, written_beside
from dreamlab.progress import progress
from dreamlab.runlog import RunLog


def peak_gib(device: torch.device) -> float:
    """Most memory held: allocated on the GPU since training began, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Updates(Callback):
    """Calls `on_update(trainer, module, update)` after the micro-batch that completed an update."""

    _seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.on_update(trainer, pl_module, self._seen)

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        raise NotImplementedError


class TrainingProgress(Updates):
    """A bar over updates, with the instance loss beside it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._stack = ExitStack()
        self._advance: Callable[..., None] = lambda *_, **__: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        bar = progress("training", self.steps, done=trainer.global_step, unit="updates")
        self._advance = self._stack.enter_context(bar)

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        self._advance(note=f"loss {module.record['train/loss']:.3f}" if module.record else "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning's `teardown` is for runs that end well."""
        self._stack.close()


OnImage = Callable[[int, Image], None]
Draw = Callable[[Sequence[str], Sequence[int], OnImage], None]


class Samples(Updates):
    """Draws the sample prompts at intervals (and when train.py asks: before and after), always from the same seeds."""

    def __init__(
        self, log: RunLog, prompts: Sequence[str], seeds: Sequence[int], every: int | None, draw: Draw
    ) -> None:
        self.runlog, self.prompts, self.seeds, self.every, self.draw = log, prompts, seeds, every, draw

    def folder(self, update: int) -> Path:
        """Where the samples of an update lie."""
        return self.runlog.run.samples / f"update-{update:06d}"

    def paths(self, update: int) -> list[Path]:
        """The files of an update's samples, in the order of prompts and seeds."""
        return [self.folder(update) / f"{number:04d}.png" for number in range(len(self.prompts) * len(self.seeds))]

    def is_taken(self, update: int) -> bool:
        """Whether all samples of an update are there already."""
        return all(path.is_file() for path in self.paths(update))

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        if self.every and update % self.every == 0 and update < self.runlog.steps and trainer.is_global_zero:
            self.take(update)

    def take(self, update: int) -> None:
        """Draw and keep every prompt x seed of one moment."""
        pairs = self.pairs()
        if not pairs:
            return
        images: dict[int, Image] = {}
        with progress(f"samples @ {update}", len(pairs)) as advance, written_beside() as write:

            def keep(index: int, image: Image) -> None:
                images[index] = image
                write(self._save, index, image, update)
                advance()

            self.draw([prompt for prompt, _ in pairs], [seed for _, seed in pairs], keep)
        self._show([images[index] for index in range(len(pairs))], update)

    def keep(self, update: int, images: Sequence[Image]) -> None:
        """Keep pictures that are drawn already, in the order of `pairs`."""
        with written_beside() as write:
            for index, image in enumerate(images):
                write(self._save, index, image, update)
        self._show(images, update)

    def pairs(self) -> list[tuple[str, int]]:
        """Prompt and seed of each picture."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    def _save(self, index: int, image: Image, update: int) -> None:
        prompt, seed = self.pairs()[index]
        save_png(image, self.paths(update)[index], {"prompt": prompt, "seed": seed, "update": update})

    def _show(self, images: Sequence[Image], update: int) -> None:
        captions = [f"{prompt} | seed {seed}" for prompt, seed in self.pairs()]
        log_images(self.runlog.logger, images, captions, update)


class StopCleanly(Updates):
    """Ctrl-C and SIGTERM end training after the update in flight; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.is_asked = False
        # Of the process, before Lightning sets its own, which hold the trainer and so a whole model
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            for number in self._before:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        is_asked = self.is_asked
        if trainer.world_size > 1:  # all stop at the same update
            is_asked = trainer.strategy.reduce_boolean_decision(is_asked, all=False)
        trainer.should_stop = trainer.should_stop or is_asked

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the process's own handlers back."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The next run of a sweep is not this one's to stop."""
        self.teardown(trainer, pl_module, "fit")
