"""What a recorded step reads on the GPU: what its gradients are multiplied by, and the learning rates.

Called by stepping.py and eight_bit.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamlab.shares import clip_factor, norm_of


class Measure:
    """The norm of unclipped gradients, and what they are to be multiplied by; fp16's scaler learns of it, too."""

    def __init__(self, device: torch.device, scaler: Any, max_grad_norm: float | None) -> None:
        self.scaler, self.max_grad_norm = scaler, max_grad_norm
        self.norm, self.factor = torch.zeros((), device=device), torch.ones((), device=device)

    def of(self, gradients: Sequence[Tensor]) -> None:
        """Find both."""
        norm = norm_of(gradients)
        scale = self.scaler._scale if self.scaler else torch.ones((), device=norm.device)
        self.norm = norm / scale
        self.factor = 1 / scale
        if self.max_grad_norm is not None:
            self.factor = self.factor * clip_factor(self.norm, self.max_grad_norm)
        if self.scaler:  # what its update() does, which knows gradients only by their optimizer
            torch._amp_update_scale_(
                scale, self.scaler._growth_tracker, (~norm.isfinite()).float(), self.scaler.get_growth_factor(),
                self.scaler.get_backoff_factor(), self.scaler.get_growth_interval(),
            )  # fmt: skip

    @property
    def has_overflowed(self) -> Tensor:
        """1 where fp16's gradients have, and there is to be no step; else 0."""
        return (~self.norm.isfinite()).float() if self.scaler else torch.zeros_like(self.norm)


class Rates:
    """The rates of an optimizer's groups `(groups,)`, float32, as its schedule left them."""

    def __init__(self, optimizer: Any, device: torch.device) -> None:
        self._told = [float(group["lr"]) for group in optimizer.param_groups]
        self.tensor = torch.tensor(self._told, device=device)

    def tell(self, optimizer: Any) -> None:
        """Copy what has changed to the GPU."""
        for place, group in enumerate(optimizer.param_groups):
            if group["lr"] != self._told[place]:
                self._told[place] = group["lr"]
                self.tensor[place].fill_(group["lr"])
