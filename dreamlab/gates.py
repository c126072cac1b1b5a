"""GEGLU that a GPU computes in one go each way, h GELU(g) of a projection [h, g] (Shazeer 2020, arXiv 2002.05202).

PyTorch passes over halves of the projection several times, and slowly, since a half's rows lie apart. gate_kernels.py
does the same arithmetic in float32 and keeps nothing but the projection for the way back. Elsewhere it is diffusers'.
"""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from dreamlab.becoming import become


class Gate(GEGLU):
    """GEGLU of `(..., C)` to `(..., D)`."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hidden_states.is_cuda or torch.compiler.is_compiling():
            gated: Tensor = super().forward(hidden_states, *args, **kwargs)
            return gated
        gated = _Fused.apply(self.proj(hidden_states).contiguous())
        return gated


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        from dreamlab.gate_kernels import gate

        ctx.save_for_backward(projected)
        return gate(projected)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        from dreamlab.gate_kernels import gradient

        (projected,) = ctx.saved_tensors
        return gradient(projected, grads[0].contiguous())


def fuse_gates(network: nn.Module) -> None:
    """Let a network's gates compute so; their weights and names stay as they are."""
    become(network, {GEGLU: Gate})
