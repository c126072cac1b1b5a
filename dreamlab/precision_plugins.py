"""Lightning's plugins for the precisions of precision.py, where updates aren't replayed (captured.py).

fp16 needs a gradient scaler (Micikevicius et al. 2018, arXiv 1710.03740), which skips an update whose gradients
overflow and halves the scale; its state goes into checkpoints.
"""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.plugins.precision import FSDPPrecision, MixedPrecision, Precision
from torch import Tensor

from dreamlab.randomness import Use, torch_generator
from dreamlab.rounding import keep_moments_exact, step_rounded


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
