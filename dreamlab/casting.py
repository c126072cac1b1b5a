"""Tensors in another dtype, all at once: one kernel for many, each of which costs more to ask for than to run."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def cast_all(tensors: Sequence[Tensor], dtype: torch.dtype, has_channels_last: bool = False) -> list[Tensor]:
    """Copies in `dtype`, laid out as they are; if so asked, those of four dimensions with their channels last."""
    kept, last = torch.preserve_format, torch.channels_last
    copies = [
        torch.empty_like(one, dtype=dtype, memory_format=last if has_channels_last and one.dim() == 4 else kept)
        for one in tensors
    ]
    if copies:
        torch._foreach_copy_(copies, [*tensors])
    return copies
