"""A training that has broken is stopped: loss or gradient is no finite number, or a weight isn't.

What is told of update u was computed with the weights that update u - 1 left, so the states that are there are older
than the break. An update that fp16's scaler has skipped changed no weight and is no break, unless it skips on and on.
Called by bookkeeping.py for each update, and by checkpoints.py before anything is kept.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dreamlab.errors import UserError

MOST_SKIPPED = 30  # updates in a row: by then the scale, 65536 at first, is below 1e-4, and no gradient overflows
REMEDY = (
    "The same command with resume=auto goes on from the last state kept and would break again: lower lr, clip"
    " gradients (max_grad_norm=1), or leave fp16 (precision=bf16)."
)


class Finiteness:
    """Looks at the numbers of one update after the other; UserError at the first that can't be mended."""

    def __init__(self) -> None:
        self._skipped = 0

    def check(self, update: int, row: Mapping[str, float]) -> None:
        """The numbers of `update`, those of the scaler among them where there is one."""
        broken = [key for key in ("train/loss", "train/grad_norm") if not math.isfinite(row[key])]
        if not broken:
            self._skipped = 0
            return
        self._skipped += 1
        has_scaler = "train/loss_scale" in row
        if has_scaler and self._skipped <= MOST_SKIPPED:
            return
        name = "the loss" if broken[0] == "train/loss" else "the gradient's norm"
        told = f", and fp16's scaler has skipped {self._skipped} updates in a row" if has_scaler else ""
        raise UserError(f"Training broke at update {update}: {name} is {row[broken[0]]}{told}. {REMEDY}")


def require_finite(weights: Iterable[Tensor], update: int) -> None:
    """UserError where one of `weights` isn't finite after `update`: such a state replaces no good one."""
    flags = [weight.detach().isfinite().all() for weight in weights]
    if flags and not bool(torch.stack(flags).all()):
        raise UserError(f"Training broke at update {update}: it left weights that are no finite numbers. {REMEDY}")
