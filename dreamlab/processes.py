"""Several processes, one device each, that share every update (Lightning's DDP and FSDP).

The first process does everything that one process would: class images, samples, files. Lightning starts the others by
the same command when training begins; each finds the run and the caches that the first has made, and joins in.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.plugins.precision import FSDPPrecision
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor

SHARDED_PRECISION: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def local_rank() -> int:
    """Which of the processes this is, 0 for the first; Lightning and torchrun tell it by the environment."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_shared_out(devices: int, name: str) -> bool:
    """Whether each process holds a share of the weights only."""
    return devices > 1 and name == "fsdp"


def strategy(devices: int, name: str, may_skip_weights: bool) -> Any:
    """Lightning's strategy for `ddp` or `fsdp`; `may_skip_weights`: some weights stop learning on the way."""
    if devices == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy(find_unused_parameters=may_skip_weights)
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    blocks = {BasicTransformerBlock, ResnetBlock2D, CLIPEncoderLayer}
    return FSDPStrategy(auto_wrap_policy=blocks, state_dict_type="full")


def total_norm(weights: Sequence[Tensor], are_shares: bool) -> Tensor:
    """The norm of all gradients together, a scalar; of every process's share where that is what `weights` are."""
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if not are_shares:
        return norm
    squared = norm.to(weights[0].device).square()
    torch.distributed.all_reduce(squared)
    return squared.sqrt()


class SharedOutPrecision(FSDPPrecision):
    """Lightning's precision for shares of weights, which plain autocast and scaler don't know, with clipping."""

    def __init__(self, name: str) -> None:
        super().__init__(SHARDED_PRECISION[name])

    def clip_grad_by_norm(self, optimizer: Any, clip_val: float, *_: Any, **__: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        factor = (clip_val / (total_norm(weights, are_shares=True) + 1e-6)).clamp(max=1)  # as torch's own clipping
        for weight in weights:
            if weight.grad is not None:
                weight.grad.mul_(factor)
