"""A running average of the weights that learn (Polyak & Juditsky 1992).

Exponential: avg <- decay * avg + (1 - decay) * w. Samples and the finished model use it in place of the last weights.
In resume states, it lets a resumed run average on as if it had never stopped. Used by assemble.py.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dreamlab.callbacks import Updates


class Average(Updates):
    """Follows what learns in `trained` after every update; `in_use()` puts the average in its place for a while."""

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.learning = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
        self.average: dict[str, Tensor] = {}  # empty before the first update
        self._follow = get_ema_multi_avg_fn(decay)

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        """Take the new weights in; the first update's are the average's start."""
        if not self.average:
            self.average = self._own()
            return
        theirs = {name: weight.to(self.learning[name].device) for name, weight in self.average.items()}
        with torch.no_grad():
            self._follow(list(theirs.values()), [self.learning[name].detach() for name in theirs], 1)
        self.average = theirs

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, `trained` holds the average, if it has seen an update; afterwards its own weights again."""
        own = self._own() if self.average else {}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    def weights(self, module: Any) -> Mapping[str, Tensor]:
        """The average of every weight that learns, by its name in `module.trained`: what a snapshot is made of."""
        return self.average

    def _own(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.learning.items()}

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                self.learning[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return dict(self.average)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints."""
        self.average = dict(state_dict)
