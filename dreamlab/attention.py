"""Which code computes attention: PyTorch's own (SDPA), or xformers through diffusers' switch for it.

SDPA needs nothing and is as fast on today's GPUs; xformers is for those who want what older trainers had. Called by
checks.py, and by assemble.py once the model is there.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from dreamlab.errors import UserError

CHOICES = ("sdpa", "xformers")


def check_attention(name: str, device: torch.device) -> None:
    """Raise UserError where xformers is asked for and cannot work."""
    if name != "xformers":
        return
    if device.type != "cuda":
        raise UserError("model.attention=xformers needs a GPU, and this run is on the CPU. Use model.attention=sdpa.")
    if find_spec("xformers") is None:
        raise UserError(
            "model.attention=xformers needs the package xformers: pip install 'dreamlab[xformers]'."
            " Or use model.attention=sdpa, which needs nothing."
        )


def use_attention(name: str, parts: Iterable[nn.Module]) -> None:
    """Switch every part that has the switch; diffusers' models have it, transformers' don't."""
    if name != "xformers":
        return
    with torch.random.fork_rng():  # diffusers tries xformers out on random numbers first
        for part in parts:
            switch: Any = getattr(part, "enable_xformers_memory_efficient_attention", None)
            if switch:
                switch()
