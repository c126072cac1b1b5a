"""Guidance's two halves of a batch, computed once for as long as they are the same.

A denoiser is given its latents twice, for the prompt and for the negative one (Ho and Salimans 2022, arXiv 2207.12598,
equation 6). Until Stable Diffusion's U-Net first looks at a prompt nothing tells the halves apart, and by then it has
been through a residual block and attention over most pixels: a thirtieth of its time. Called by sample.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor

from dreamlab.layouts import ResidualBlock, Transformer
from dreamlab.running_sums import Block, is_plain


class FirstHalf(ResidualBlock):
    """The first residual block, of `(2 B, C, H, W)` whose halves are the same, to `(B, D, H, W)`.

    The transformer after it sees twice as many prompts, and goes on with as many images.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        count = len(input_tensor) // 2
        return super().forward(input_tensor[:count], None if temb is None else temb[:count], *args, **kwargs)


@contextmanager
def once(denoiser: Any, guidance: float) -> Iterator[None]:
    """Have a U-Net that draws with guidance compute in the block what both halves share once."""
    if guidance <= 1 or not _shares(denoiser):
        yield
        return
    first = denoiser.down_blocks[0].resnets[0]
    first.__class__ = FirstHalf
    try:
        yield
    finally:
        first.__class__ = ResidualBlock


def _shares(denoiser: Any) -> bool:
    """Whether it looks at a prompt first in the transformer after its first residual block."""
    if not isinstance(denoiser, UNet2DConditionModel) or type(denoiser.down_blocks[0]) is not CrossAttnDownBlock2D:
        return False
    block, told = denoiser.down_blocks[0], denoiser.config
    asks = (told.addition_embed_type, told.class_embed_type, told.time_cond_proj_dim)  # before, with its times
    transformer = block.attentions[0]
    if any(one is not None for one in asks) or type(block.resnets[0]) is not ResidualBlock:
        return False
    return type(transformer) is Transformer and all(
        type(one) is Block and is_plain(one) for one in transformer.transformer_blocks
    )
