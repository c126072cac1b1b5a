"""Dropout as a function: what an adapter leaves out of a micro-batch follows from (seed, update, its first sample).

torch's dropout draws from the device's global generator, which nothing else here does, so that is set anew for every
micro-batch. How an update is split therefore decides what is left out, unlike all else that is random. Used by
assemble.py where adapter.dropout is above 0.
"""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from dreamlab.randomness import Use, generator


class Dropout(Callback):
    """Seeds the global generators before each micro-batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the forward pass."""
        torch.manual_seed(int(generator(self.seed, Use.DROPOUT, batch.update, batch.samples[0]).integers(2**32)))
