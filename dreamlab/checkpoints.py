"""What a run keeps on its way: states to go on from exactly, and small snapshots to draw with.

Both are taken between two updates and hold only weights that learn; the rest is the base model's. A state holds them
in float32, beside optimizer, schedule, scaler and callbacks; what a snapshot is, snapshots.py says.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from dreamlab import sealed
from dreamlab.finiteness import require_finite
from dreamlab.runlog import RunLog
from dreamlab.runs import numbered, update_of
from dreamlab.snapshots import write_snapshot
from dreamlab.whole import discard, link_whole, written_whole

SPARED_S = 300


def learning(module: Any) -> set[str]:
    """Names, below `trained`, of the weights that learn; asked before training, since some may stop on the way."""
    return {name for name, weight in module.trained.named_parameters() if weight.requires_grad}


def learnt(module: Any) -> Mapping[str, Tensor]:
    """The weights that a snapshot is made of, named <part>.<name in the part>."""
    state: dict[str, Tensor] = module.trained.state_dict()
    return state


class StateFiles(TorchCheckpointIO):
    """Writes a state straight to its file: Lightning would copy it in memory first and, if killed, leave it in /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        replaces = path.parent.is_dir() and any(path.parent.glob("*.ckpt"))  # the state before it goes next
        with written_whole(path, flush=replaces) as temporary:
            sealed.save(checkpoint, temporary)


class _Kept(Callback):
    """Calls `keep(trainer, module, update)` where `is_due(update)` and where training ends, by itself or by Ctrl-C."""

    def __init__(self, is_due: Callable[[int], bool]) -> None:
        self.is_due = is_due
        self._kept = 0

    def is_there(self, update: int) -> bool:
        raise NotImplementedError

    def keep(self, trainer: Trainer, module: LightningModule, update: int) -> None:
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What this run goes on from need not be kept a second time."""
        self._kept = trainer.global_step if self.is_there(trainer.global_step) else 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Between two micro-batches: in `on_train_batch_end` the loop has not yet counted the last one."""
        if self.is_due(trainer.global_step):
            self._keep(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > self._kept:
            self._kept = trainer.global_step
            trained: Any = module.trained
            require_finite(trained.parameters(), self._kept)
            self.keep(trainer, module, self._kept)


class ResumeState(_Kept):
    """Keeps resume/update-000400.ckpt, the newest `count` of them, every `every` updates and where a run ends.

    `every` None: when SPARED_S have passed, which is what a crash may then cost; Ctrl-C costs nothing. Of several runs
    of one training the longest has the file, and the others that aren't over have links to it.
    """

    def __init__(self, logs: Sequence[RunLog], every: int | None, count: int, settings: dict[str, Any]) -> None:
        ends = {log.steps for log in logs}

        def is_due(update: int) -> bool:
            return update in ends or (update % every == 0 if every else time.monotonic() - self._since_s >= SPARED_S)

        super().__init__(is_due)
        self._since_s = 0.0
        self.logs = sorted(logs, key=lambda log: log.steps, reverse=True)
        self.count, self.settings = count, settings
        self._frozen: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Frozen weights are not in a state: whoever loads one finds the base model's in their place."""
        module: Any = pl_module
        learns = learning(module)
        self._frozen = {f"trained.{name}" for name, _ in module.trained.named_parameters() if name not in learns}

        def fill(module: LightningModule, state: dict[str, Tensor], *_: Any) -> None:
            own = module.state_dict()
            state.update({name: own[name] for name in self._frozen if name not in state})

        module.register_load_state_dict_pre_hook(fill)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since_s = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Settings ride along, so that a resume with others can be refused."""
        checkpoint["dreamlab"] = {"settings": self.settings, "update": trainer.global_step}
        for name in self._frozen:
            del checkpoint["state_dict"][name]

    def is_there(self, update: int) -> bool:
        return self.logs[0].run.state(update).is_file()

    def keep(self, trainer: Trainer, module: LightningModule, update: int) -> None:
        """Write the state, say so in status.json, and drop what is too old or, after a broken one, too new."""
        written, self._since_s = self.logs[0].run.state(update), time.monotonic()
        trainer.save_checkpoint(written)  # every process takes part, and the first one writes
        if not trainer.is_global_zero:
            return
        for log in self.logs:
            if log.steps >= update:
                if log is not self.logs[0]:
                    link_whole(written, log.run.state(update))
                self._say(log, update)

    def _say(self, log: RunLog, update: int) -> None:
        log.run.set_status("running", update=update, signature=log.signature, pid=os.getpid())
        reached = [state for state in log.run.states() if update_of(state) <= update]
        for state in {*log.run.states()} - {*reached[: self.count]}:
            discard(state)


class Snapshots(_Kept):
    """Keeps snapshots/update-000400, the newest `count` of them or all; `weights` are what they are made of."""

    def __init__(
        self, log: RunLog, is_due: Callable[[int], bool], count: int | None, about: Mapping[str, Any],
        weights: Callable[[Any], Mapping[str, Tensor]] = learnt,
    ) -> None:  # fmt: skip
        super().__init__(lambda update: update <= log.steps and is_due(update))
        self.run, self.steps = log.run, log.steps
        self.count, self.about, self.weights = count, about, weights
        self._learning: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._learning = learning(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last update has one if it is due; where Ctrl-C ends training is no place for one."""
        if trainer.global_step == self.steps and self.is_due(trainer.global_step):
            super().on_train_end(trainer, pl_module)

    def is_there(self, update: int) -> bool:
        return (self.run.snapshots / f"update-{update:06d}").is_dir()

    def keep(self, trainer: Trainer, module: LightningModule, update: int) -> None:
        """Write the snapshot and drop what is too old."""
        if not trainer.is_global_zero:
            return
        weights = {name: weight for name, weight in self.weights(module).items() if name in self._learning}
        write_snapshot(self.run.snapshots / f"update-{update:06d}", weights, {"update": update, **self.about})
        for old in numbered(self.run.snapshots)[self.count :] if self.count else []:
            discard(old)
