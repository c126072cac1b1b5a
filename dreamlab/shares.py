"""The norm of gradients, also of those of which each process holds a share (FSDP), and what clipping multiplies by.

Lightning's own FSDP plugin refuses to clip by norm. Called by module.py, which logs the norm, and stepping.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of some tensors together, a float32 scalar, whatever their dtype."""
    if not gradients:
        return torch.zeros(())
    alike = [
        [one for one in gradients if one.dtype == dtype] for dtype in dict.fromkeys(one.dtype for one in gradients)
    ]
    norms = [norm for some in alike for norm in torch._foreach_norm(some, 2, torch.float32)]  # quick where they are
    return torch.linalg.vector_norm(torch.stack(norms))


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


def clip(weights: Sequence[Tensor], norm: Tensor, most: float) -> None:
    """Scale all gradients, whose norm together is `norm`, so that it is at most `most`."""
    factor = clip_factor(norm, most)
    if factor.device.type != "cpu" or factor != 1:  # a GPU isn't asked, which would be to wait for it
        torch._foreach_mul_([weight.grad for weight in weights if weight.grad is not None], factor)
