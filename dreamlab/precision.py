"""Precision: the dtype of the forward pass. Trained weights, losses and the optimizer's arithmetic stay float32.

fp16 needs a gradient scaler (Micikevicius et al. 2018, arXiv 1710.03740); Lightning's plugin holds it, and its state
goes into checkpoints.
"""

import contextlib
from contextlib import AbstractContextManager

import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision

from dreamlab.errors import UserError, did_you_mean

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str) -> None:
    """Raise UserError for a precision that is not one."""
    if name not in DTYPES:
        raise UserError(f"precision={name}: unknown precision.{did_you_mean(name, DTYPES)}")


def plugin(name: str, device: torch.device) -> Precision:
    """Lightning's precision plugin for fp32, bf16 or fp16 (with a scaler) on `device`."""
    if name == "fp32":
        return Precision()
    return MixedPrecision("16-mixed" if name == "fp16" else "bf16-mixed", device.type)


def autocast(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The same arithmetic outside the trainer, for sampling and encoding."""
    return contextlib.nullcontext() if name == "fp32" else torch.autocast(device.type, DTYPES[name])
