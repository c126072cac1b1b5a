"""Layer norms of a transformer's tokens that a GPU computes in one go in half precision.

Autocast computes them in float32: tokens are cast before, and cast back after, once for each layer that reads them, and
so are the gradients. row_norm_kernels.py does the same arithmetic, in float32 too, and rounds where autocast would.
Elsewhere, and in a compiled network, the norms are PyTorch's.
"""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import layer_norm

LONGEST = 2048  # of the rows that a kernel takes


class RowNorm(nn.LayerNorm):
    """LayerNorm of `(..., C)`."""

    def shifted(self, rows: Tensor, shift: Tensor, later: Tensor | None = None) -> Tensor:
        """That of rows plus `shift` `(C,)`, on a GPU and without gradients; if told `later`, rows become their sum."""
        from dreamlab.row_norm_kernels import normalise

        return normalise(rows, self.weight, self.bias, self.eps, shift, later)

    def forward(self, input: Tensor) -> Tensor:
        is_half = input.dtype in (torch.float16, torch.bfloat16)
        if input.is_cuda and is_half and not torch.compiler.is_compiling():
            normalised: Tensor = _Fused.apply(input.contiguous(), self.weight, self.bias, self.eps)
            return normalised
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from dreamlab.row_norm_kernels import normalise

        ctx.save_for_backward(rows, weight, bias)
        ctx.eps = eps
        return normalise(rows, weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from dreamlab.row_norm_kernels import gradients

        rows, weight, bias = ctx.saved_tensors
        of_rows, of_weight, of_bias = gradients(rows, grads[0].contiguous(), weight, ctx.eps)
        return of_rows, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None


def fuse_row_norms(network: nn.Module) -> None:
    """Let the norms of a network's transformers compute so; their weights and names stay as they are."""
    for block in network.modules():
        for norm in block.children() if isinstance(block, BasicTransformerBlock) else ():
            if (
                type(norm) is nn.LayerNorm
                and norm.bias is not None
                and norm.bias.dim() == 1
                and len(norm.bias) <= LONGEST
            ):
                norm.__class__ = RowNorm
