"""A U-Net's way up, whose blocks join images with those of the way down only where they must.

A residual block reads both where they lie: its norm, and the product that is its shortcut. Called as a model is loaded;
in training, and on a CPU, the blocks are diffusers'.
"""

from typing import Any

from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn

from dreamlab.becoming import become
from dreamlab.biases import is_drawing
from dreamlab.layouts import ResidualBlock


class UpBlock(UpBlock2D):
    """UpBlock2D of `(B, C, H, W)`."""

    def forward(
        self, hidden_states: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], temb: Tensor | None = None,
        upsample_size: Any = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        if is_drawing(hidden_states) and _is_plain(self):
            return _drawn(self, hidden_states, res_hidden_states_tuple, temb, upsample_size)
        image: Tensor = super().forward(hidden_states, res_hidden_states_tuple, temb, upsample_size, *args, **kwargs)
        return image


class CrossAttnUpBlock(CrossAttnUpBlock2D):
    """CrossAttnUpBlock2D of `(B, C, H, W)`."""

    def forward(
        self, hidden_states: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None, cross_attention_kwargs: Any = None, upsample_size: Any = None,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        told = {"encoder_hidden_states": encoder_hidden_states, "cross_attention_kwargs": cross_attention_kwargs}
        told.update(kwargs)
        if is_drawing(hidden_states) and _is_plain(self):
            return _drawn(self, hidden_states, res_hidden_states_tuple, temb, upsample_size, **told)
        image: Tensor = super().forward(
            hidden_states, res_hidden_states_tuple, temb, upsample_size=upsample_size, **told
        )  # fmt: skip
        return image


def _is_plain(block: Any) -> bool:
    """Whether it does nothing else to the images (FreeU, arXiv 2309.11497, would)."""
    does_more = any(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))
    return not does_more and all(isinstance(layer, ResidualBlock) for layer in block.resnets)


def _drawn(
    block: Any, image: Tensor, skipped: tuple[Tensor, ...], temb: Tensor | None, size: Any, **told: Any
) -> Tensor:  # fmt: skip
    for number, layer in enumerate(block.resnets):
        image = layer(image, temb, beside=skipped[-1 - number])
        if told:
            image = block.attentions[number](image, **told, return_dict=False)[0]
    for layer in block.upsamplers or ():
        image = layer(image, size)
    return image


def join_less(network: nn.Module) -> None:
    """Let a network's blocks compute so; weights and names stay as they are."""
    become(network, {UpBlock2D: UpBlock, CrossAttnUpBlock2D: CrossAttnUpBlock})
