"""Copies of networks in half precision, to draw pictures with.

Under autocast a network's norms compute in float32, and frozen weights are cast anew at every step of a sampler: a
fifth of the time at Stable Diffusion's size. A copy whose weights are half is spared both. What goes in and comes out
stays float32, and so does the sampler's arithmetic, which bfloat16 is too coarse for. Called by sample.py.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DRAWS_WITH = ("unet", "transformer", "vae")  # of a pipeline's networks; text encoders run once for each prompt
CALLED_AS = ("forward", "decode")  # what a pipeline calls of them


def half_copy(network: nn.Module, dtype: torch.dtype, is_compiled: bool = False) -> nn.Module:
    """A copy of `network` whose weights are `dtype`; float32 goes in and comes out.

    Weights that are `dtype` already are shared with `network`, not copied.
    """
    tensors = [*network.parameters(), *network.buffers()]
    halves: dict[int, Any] = {
        id(one): nn.Parameter(one.detach().to(dtype), requires_grad=False) if isinstance(one, nn.Parameter)
        else one.to(dtype)
        for one in tensors if one.is_floating_point()
    }  # fmt: skip
    copied = copy.deepcopy(network, halves)
    for name in CALLED_AS:
        if hasattr(copied, name):
            plain: Callable[..., Any] = getattr(copied, name)
            if is_compiled and name == "forward":
                plain = torch.compile(plain)
            setattr(copied, name, _at_the_border(plain, dtype))
    return copied


def _at_the_border(call: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """`call` with floating-point tensors cast to `dtype` on the way in and to float32 on the way out.

    But for timesteps, one number a sample, and SDXL's sizes: bfloat16 would tell 997 as 996.
    """

    def cast(value: Any, to: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(to) if value.is_floating_point() and value.ndim > 1 else value
        if isinstance(value, dict):  # also the output classes of diffusers
            made = {key: one if key == "time_ids" else cast(one, to) for key, one in value.items()}
            return type(value)(**made) if type(value) is not dict else made
        return type(value)(cast(one, to) for one in value) if isinstance(value, list | tuple) else value

    def called(*args: Any, **kwargs: Any) -> Any:
        device = next((one.device.type for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return cast(call(*cast(args, dtype), **cast(kwargs, dtype)), torch.float32)

    return called


@contextmanager
def drawing_in(pipe: Any, dtype: torch.dtype, is_compiled: bool = False) -> Iterator[None]:
    """Have a diffusers pipeline draw with half copies of its networks in the block; a VAE is never compiled.

    What its family keeps in float32 (models.parts.keep_float32: SDXL's VAE, which overflows in fp16) is not copied.
    """
    if dtype == torch.float32 and not is_compiled:
        yield
        return
    own = {
        name: part for name, part in pipe.components.items()
        if name in DRAWS_WITH and isinstance(part, nn.Module) and not getattr(part, "stays_float32", False)
    }  # fmt: skip
    try:
        for name, part in own.items():
            setattr(pipe, name, half_copy(part, dtype, is_compiled and name != "vae"))
        yield
    finally:
        for name, part in own.items():
            setattr(pipe, name, part)
