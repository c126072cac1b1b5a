"""Precision: the dtype of the forward pass, and of the trained weights.

    fp32        everything in float32
    bf16, fp16  forward pass under autocast; trained weights, losses and the optimizer's arithmetic stay float32
    bf16_pure   bf16, and the trained weights and their gradients are bfloat16 too (see rounding.py); the optimizer's
                arithmetic and moments stay float32

fp16 needs a gradient scaler (Micikevicius et al. 2018, arXiv 1710.03740), which skips an update whose gradients
overflow and halves the scale; its state goes into checkpoints.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from pytorch_lightning.plugins.precision import FSDPPrecision, MixedPrecision, Precision
from torch import Tensor, nn

from dreamlab.errors import UserError, did_you_mean
from dreamlab.randomness import Use, torch_generator
from dreamlab.rounding import keep_moments_exact, step_rounded
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


class Scaled(MixedPrecision):
    """fp16 with a gradient scaler; counts the updates that the scaler skipped."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("16-mixed", device.type)
        self.skipped = 0

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        before = self.scaler.get_scale()  # type: ignore[union-attr]
        result = super().optimizer_step(optimizer, model, closure, **kwargs)
        self.skipped += self.scaler.get_scale() < before  # type: ignore[union-attr]
        return result

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "skipped_updates": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped_updates"]
        super().load_state_dict(state_dict)

    def numbers(self) -> dict[str, Tensor]:
        """How many updates were skipped so far, and what losses are multiplied by."""
        scale: Any = self.scaler
        return {
            "train/skipped_updates": torch.tensor(self.skipped),
            "train/loss_scale": torch.tensor(scale.get_scale()),
        }


class Pure(MixedPrecision):
    """bf16 with bfloat16 weights; how update u is rounded is a function of (seed, u)."""

    def __init__(self, device: torch.device, seed: int) -> None:
        super().__init__("bf16-mixed", device.type)
        self.seed = seed

    def connect(self, model: Any, optimizers: list[Any], lr_schedulers: list[Any]) -> Any:
        for optimizer in optimizers:
            keep_moments_exact(optimizer)
        return super().connect(model, optimizers, lr_schedulers)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        result = closure()
        self._after_closure(model, optimizer)  # hooks and clipping
        step_rounded(optimizer, torch_generator(self.seed, Use.ROUNDING, model.trainer.global_step, model.device))
        return result


def plugin(name: str, device: torch.device, seed: int) -> Precision:
    """Lightning's plugin for a precision on `device`."""
    if name == "fp32":
        return Precision()
    if name == "fp16":
        return Scaled(device)
    return Pure(device, seed) if name == "bf16_pure" else MixedPrecision("bf16-mixed", device.type)


def shared_out(name: str) -> Precision:
    """The same for weights shared out between processes, which plain autocast and scaler don't know."""
    names: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return FSDPPrecision(names[name])
