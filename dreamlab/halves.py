"""Networks in half precision for as long as pictures are drawn with them.

Under autocast a network's norms compute in float32, and frozen weights are cast anew at every step of a sampler: a
fifth of the time at Stable Diffusion's size. Weights that are half themselves are spared both. What goes in and comes
out stays float32, and so does the sampler's arithmetic, which bfloat16 is too coarse for. Afterwards each weight is
what and where it was. Called by sample.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreamlab.casting import cast_all
from dreamlab.compiling import joining_rows
from dreamlab.replayed import Replayed

DRAWS_WITH = ("unet", "transformer", "vae")  # of a pipeline's networks; text encoders run once for each prompt
CALLED_AS = ("forward", "decode")  # what a pipeline calls of them


@contextmanager
def halved(
    networks: list[nn.Module], dtype: torch.dtype, is_compiled: bool = False, is_on_gpu: bool = False
) -> Iterator[None]:  # fmt: skip
    """Networks whose weights are `dtype` in the block, and which take and give float32.

    A denoiser is compiled, if so asked, or else replayed on a GPU; a VAE is neither. There, the copies have their
    channels last, which convolutions in half precision are faster with.
    """
    weights = [(weight, weight.data) for network in networks for weight in network.parameters()]
    buffers = [  # by their places, since a network that moves to another device gets new ones
        (network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], buffer)
        for network in networks for path, buffer in network.named_buffers() if buffer.is_floating_point()
    ]  # fmt: skip
    try:
        others = [weight for weight, own in weights if own.dtype != dtype]
        for weight, half in zip(others, cast_all([one.data for one in others], dtype, is_on_gpu), strict=True):
            weight.data = half
        for module, name, buffer in buffers:
            setattr(module, name, buffer.to(dtype))
        for network in networks:
            for name in CALLED_AS:
                if hasattr(network, name):
                    plain: Callable[..., Any] = getattr(network, name)
                    is_denoiser = not hasattr(network, "decode")
                    if is_denoiser and is_compiled:
                        plain = torch.compile(plain, backend=joining_rows)
                    elif is_denoiser and is_on_gpu:
                        plain = Replayed(plain)
                    setattr(network, name, _at_the_border(plain, dtype))
        yield
    finally:
        for weight, own in weights:
            weight.data = own
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        for network in networks:
            for name in CALLED_AS:
                network.__dict__.pop(name, None)  # the class's own shows again


def _at_the_border(call: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """`call` with floating-point tensors cast to `dtype` on the way in and to float32 on the way out.

    But for timesteps, one number a sample, and SDXL's sizes: bfloat16 would tell 997 as 996. A sampler has timesteps on
    the CPU, and they follow the other tensors.
    """

    def cast(value: Any, to: torch.dtype, device: torch.device) -> Any:
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            return value.to(to) if value.is_floating_point() and value.ndim > 1 else value
        if isinstance(value, dict):  # also the output classes of diffusers
            made = {key: one if key == "time_ids" else cast(one, to, device) for key, one in value.items()}
            return type(value)(**made) if type(value) is not dict else made
        return type(value)(cast(one, to, device) for one in value) if isinstance(value, list | tuple) else value

    def called(*args: Any, **kwargs: Any) -> Any:
        device = next((one.device for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), torch.device("cpu"))
        with torch.autocast(device.type, enabled=False):
            made = call(*cast(args, dtype, device), **cast(kwargs, dtype, device))
            return cast(made, torch.float32, device)

    return called


@contextmanager
def drawing_in(pipe: Any, dtype: torch.dtype, device: torch.device, is_compiled: bool = False) -> Iterator[None]:
    """Have the networks of a diffusers pipeline draw in `dtype` on a device.

    What its family keeps in float32 (models.parts.keep_float32: SDXL's VAE, which overflows in fp16) stays so.
    """
    networks = [
        part for name, part in pipe.components.items()
        if name in DRAWS_WITH and isinstance(part, nn.Module) and not getattr(part, "stays_float32", False)
    ]  # fmt: skip
    with halved(networks, dtype, is_compiled, device.type == "cuda"):
        yield


@contextmanager
def decoding_in_parts(vae: Any, at_once: int) -> Iterator[None]:
    """Have a pipeline's VAE decode no more than `at_once` pictures at a time: many take gigabytes."""
    own, decode = vae.__dict__.get("decode"), vae.decode

    def in_parts(latents: Tensor, **settings: Any) -> tuple[Tensor]:
        return (torch.cat([decode(part, **settings)[0] for part in latents.split(at_once)]),)

    vae.decode = in_parts
    try:
        yield
    finally:
        del vae.decode
        if own is not None:
            vae.decode = own
