"""Attention that goes straight to its products: diffusers' asks for the arguments of its processor, and divides by 1.

Both take little, once for each layer and update; the division passes over what it gives, and over its gradient. The
numbers are the same. While a GPU draws, queries, keys and values are one product, which reads the tokens once.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from dreamlab.becoming import become
from dreamlab.biases import is_drawing


class Undivided(Attention):
    """Attention of tokens `(B, N, C)` by SDPA; with a mask, or another processor, it is diffusers'."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:  # fmt: skip
        if attention_mask is not None or settings or not self.is_straight():
            told: Tensor = super().forward(hidden_states, encoder_hidden_states, attention_mask, **settings)
            return told
        told = self.attended(hidden_states, encoder_hidden_states)
        for layer in self.to_out:  # a projection, and its dropout
            told = layer(told)
        return told

    def is_straight(self) -> bool:
        """Whether its processor does nothing else."""
        return type(self.processor) is AttnProcessor2_0

    def attended(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """What the heads give of tokens, looking at a context or at themselves, before it is projected."""
        layers = self.to_q, self.to_k, self.to_v
        if context is None and is_drawing(tokens) and all(_is_product(layer) for layer in layers):
            told = linear(tokens, torch.cat([layer.weight for layer in layers])).chunk(3, -1)
        else:
            seen = tokens if context is None else context
            told = self.to_q(tokens), self.to_k(seen), self.to_v(seen)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in told)
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _is_product(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is None


def divide_less(network: nn.Module) -> None:
    """Let a network's attention compute so, where it does nothing else; weights and names stay as they are."""
    become(network, {Attention: Undivided}, _is_plain)


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.add_k_proj)
    return not any(extras) and not attn.residual_connection and attn.rescale_output_factor == 1
