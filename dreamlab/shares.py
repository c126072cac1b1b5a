"""Gradients of which each process holds a share (FSDP): their norm, and clipping by it.

Lightning's own FSDP plugin refuses to clip by norm. Called by module.py, which logs the norm, and assemble.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.plugins.precision import FSDPPrecision
from torch import Tensor

SHARDED_PRECISION: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of some tensors together, a float32 scalar, whatever their dtype."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients), 2, torch.float32)))


def total_norm(weights: Sequence[Tensor], are_shares: bool) -> Tensor:
    """The norm of all gradients together, a scalar; of every process's share where that is what `weights` are."""
    norm = norm_of([weight.grad for weight in weights if weight.grad is not None])
    if not are_shares:
        return norm
    squared = norm.to(weights[0].device).square()
    torch.distributed.all_reduce(squared)
    return squared.sqrt()


def clip_factor(norm: Tensor, most: float) -> Tensor:
    """What gradients of this norm are multiplied by to have at most `most`; as torch's own clipping."""
    return (most / (norm + 1e-6)).clamp(max=1)


class SharedOutPrecision(FSDPPrecision):
    """Lightning's precision for shares of weights, which plain autocast and scaler don't know, with clipping."""

    def __init__(self, name: str) -> None:
        super().__init__(SHARDED_PRECISION[name])

    def clip_grad_by_norm(self, optimizer: Any, clip_val: float, *_: Any, **__: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        factor = clip_factor(total_norm(weights, are_shares=True), clip_val)
        for weight in weights:
            if weight.grad is not None:
                weight.grad.mul_(factor)
