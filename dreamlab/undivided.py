"""Attention that doesn't divide what it gives by 1, as diffusers' does: one pass less over it, and over its gradient.

The numbers are the same.
"""

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Undivided:
    """Diffusers' attention of tokens `(B, N, C)` by SDPA without its last step: it divides by 1, a pass of its own."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if attention_mask is not None:
            attended: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return attended
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            told.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for told in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        told = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # a projection, and its dropout
            told = layer(told)
        return told


def divide_less(network: nn.Module) -> None:
    """Let a network's attention compute so, where it does nothing else."""
    for module in network.modules():
        if type(module) is Attention and type(module.processor) is AttnProcessor2_0 and _is_plain(module):
            module.set_processor(Undivided())


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    return not any(extras) and not attn.residual_connection and attn.rescale_output_factor == 1
