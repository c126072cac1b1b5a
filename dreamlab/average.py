"""A running average of the trained weights (Polyak & Juditsky 1992), exponential: avg <- decay * avg + (1 - decay) * w.

Samples and the finished model use it in place of the last weights. It rides in resume states, so a resumed run averages
on as if it had never stopped. Used by assemble.py.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dreamlab.callbacks import Updates


class Average(Updates):
    """Follows `trained` after every update; `in_use()` puts the average in its place for a while."""

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.trained = trained
        self.average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        """Take the new weights in; the first update's are the average's start."""
        self.average.to(module.device).update_parameters(self.trained)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, `trained` holds the average, which must have seen an update; afterwards its own weights again."""
        if self.average.n_averaged == 0:
            yield
            return
        own = {name: weight.detach().clone() for name, weight in self.trained.named_parameters()}
        self._write(dict(self.average.module.named_parameters()))
        try:
            yield
        finally:
            self._write(own)

    def weights(self, module: Any) -> dict[str, torch.Tensor]:
        """The average of every weight of `module.trained`, by name: what a snapshot is made of."""
        return dict(self.average.module.state_dict())

    def _write(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.trained.named_parameters():
                weight.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return dict(self.average.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints."""
        self.average.load_state_dict(state_dict)
