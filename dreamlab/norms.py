"""Group norms that a GPU computes in one go: no copies between memory layouts, no detour over float32, SiLU included.

Convolutions in half precision want channels last. PyTorch's group norm wants them first, autocast gives it float32, and
what follows is cast and turned around again: a third of the time that drawing takes is such copies. norm_kernels.py
does the same arithmetic, in float32 too, on the image as it lies. On a CPU, and in a compiled network, whose compiler
knows how, the norms are PyTorch's.
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from dreamlab.becoming import become


class Norm(nn.GroupNorm):
    """GroupNorm, and SiLU after it where `has_silu`."""

    has_silu = False

    def shifted(self, image: Tensor, shift: Tensor) -> Tensor:
        """That of an image plus `shift` `(B, C)` or `(1, C)`, on a GPU and without gradients."""
        from dreamlab.norm_kernels import normalise

        shift = shift.expand(image.shape[0], -1).contiguous()
        image = image.contiguous(memory_format=torch.channels_last)
        return normalise(image, self.weight, self.bias, self.num_groups, self.eps, self.has_silu, shift)[0]

    def joined(self, image: Tensor, beside: Tensor) -> Tensor:
        """That of two images joined, `(B, X, H, W)` and `(B, C - X, H, W)`, on a GPU and without gradients."""
        from dreamlab.norm_kernels import normalise

        image, beside = (one.contiguous(memory_format=torch.channels_last) for one in (image, beside))
        parts = self.weight, self.bias, self.num_groups, self.eps, self.has_silu
        return normalise(image, *parts, beside=beside)[0]

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda and input.dim() == 4 and not torch.compiler.is_compiling():
            image = input.contiguous(memory_format=torch.channels_last)
            normalised: Tensor = _Fused.apply(image, self.weight, self.bias, self.num_groups, self.eps, self.has_silu)
            return normalised
        normalised = group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return silu(normalised) if self.has_silu else normalised


class NormWithSiLU(Norm):
    """Both."""

    has_silu = True


class Passed(nn.SiLU):
    """SiLU of what is no image: an image comes from a norm that has computed it."""

    def forward(self, input: Tensor) -> Tensor:
        return input if input.dim() == 4 else silu(input)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, has_silu: bool
    ) -> Tensor:  # fmt: skip
        from dreamlab.norm_kernels import normalise

        normalised, moments = normalise(image, weight, bias, groups, eps, has_silu)
        ctx.save_for_backward(image, moments, weight, bias)
        ctx.groups, ctx.has_silu = groups, has_silu
        return normalised

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from dreamlab.norm_kernels import gradients

        image, moments, weight, bias = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        of_image, of_weight, of_bias = gradients(image, grad, moments, weight, bias, ctx.groups, ctx.has_silu)
        return of_image, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None, None


def fuse_norms(network: nn.Module) -> None:
    """Let a network's group norms compute so; their weights and names stay as they are."""
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            _take_in(module.nonlinearity, module.norm1, module.norm2)
        elif isinstance(getattr(module, "conv_norm_out", None), nn.GroupNorm):
            _take_in(module.conv_act, module.conv_norm_out)
    become(network, {nn.GroupNorm: Norm}, lambda norm: norm.affine)


def _take_in(activation: Any, *norms: Any) -> None:
    """Leave an activation to the norms before it, if it is SiLU and they are plain."""
    if type(activation) is nn.SiLU and all(type(norm) is nn.GroupNorm and norm.affine for norm in norms):
        activation.__class__ = Passed
        for norm in norms:
            norm.__class__ = NormWithSiLU
