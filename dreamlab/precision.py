"""Precision: the dtype of the forward pass, and of the trained weights.

    fp32        everything in float32
    bf16, fp16  forward pass under autocast; trained weights, losses and the optimizer's arithmetic stay float32
    bf16_pure   bf16, and the trained weights and their gradients are bfloat16 too (see rounding.py); the optimizer's
                arithmetic and moments stay float32

What Lightning is told of them is in precision_plugins.py.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from dreamlab.errors import UserError, did_you_mean
from dreamlab.schema import Train

FORWARD = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_HALF = (nn.Linear, nn.Conv2d)  # what autocast computes in half precision, gradients of weights included
PRECISIONS = (*FORWARD, "bf16_pure")


def check_forward(name: str) -> None:
    """Raise UserError for a precision that nothing can be drawn with."""
    if name not in FORWARD:
        raise UserError(f"precision={name}: unknown precision.{did_you_mean(name, FORWARD)}")


def check_precision(config: Train) -> None:
    """Raise UserError where bf16_pure meets what needs finer weights, or weights that are whole."""
    if config.precision != "bf16_pure":
        return
    if config.ema is not None:
        raise UserError(f"precision=bf16_pure is too coarse for ema={config.ema}. Leave it out, or use precision=bf16.")
    if config.trainer.strategy == "fsdp" and config.trainer.devices > 1:
        raise UserError("precision=bf16_pure can't round shares of weights. Use trainer.strategy=ddp, or bf16.")


def check_compile(how: str, name: str, device: torch.device) -> None:
    """Raise UserError for what PyTorch's compiler (2.13) gets wrong: most of a U-Net's gradients come out as 0."""
    if how == "full" and name != "fp32" and device.type == "cpu":
        raise UserError(
            f"trainer.compile=full and precision={name}: on a CPU PyTorch's compiler gets gradients wrong in half"
            " precision. Use trainer.compile=blocks, or precision=fp32."
        )


def weight_dtype(name: str) -> torch.dtype:
    """The dtype of trained weights."""
    return torch.bfloat16 if name == "bf16_pure" else torch.float32


def forward_dtype(name: str) -> torch.dtype:
    """What a forward pass computes in."""
    return FORWARD[name.removesuffix("_pure")]


def autocast(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic of a forward pass, for sampling and encoding too."""
    if name == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, forward_dtype(name))
