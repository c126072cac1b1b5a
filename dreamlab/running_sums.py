"""Transformer blocks that add to their tokens in place while a GPU draws: a product's kernel adds what it finds there.

A block is three sums, of tokens and what attention, the prompt and a feed-forward network give. Each would pass over
both summands and write a third. Biases, which such a product can't add as well, join where a norm reads (row_norms.py).
A block also takes fewer tokens than prompts (twins.py): it repeats them before they first look at a prompt.
"""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dreamlab.becoming import become
from dreamlab.biases import is_drawing_in_half
from dreamlab.gates import Gate
from dreamlab.row_norms import RowNorm
from dreamlab.undivided import Undivided


class Block(BasicTransformerBlock):
    """BasicTransformerBlock of tokens `(B, N, C)`, which it overwrites while a GPU draws, and prompts `(B, M, D)`."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Any = None, timestep: Any = None, cross_attention_kwargs: Any = None, *others: Any,
        **settings: Any,
    ) -> Tensor:  # fmt: skip
        is_masked = attention_mask is not None or encoder_attention_mask is not None
        if is_masked or cross_attention_kwargs or not is_plain(self):
            tokens: Tensor = super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep,
                cross_attention_kwargs, *others, **settings,
            )  # fmt: skip
            return tokens
        if is_drawing_in_half(hidden_states) and self._sums(hidden_states):
            return self._drawn(hidden_states, encoder_hidden_states)
        tokens = self.attn1(self.norm1(hidden_states)) + hidden_states
        tokens = for_prompts(tokens, encoder_hidden_states)
        tokens = self.attn2(self.norm2(tokens), encoder_hidden_states) + tokens
        return self.ff(self.norm3(tokens)) + tokens

    def _sums(self, tokens: Tensor) -> bool:
        """Whether the block's layers are plain, an adapter's wouldn't be, and compute in the tokens' dtype."""
        (first, *drops), (second, *others), (gate, *more, last) = self.attn1.to_out, self.attn2.to_out, self.ff.net
        return (
            type(gate) is Gate and tokens.is_contiguous()
            and all(type(norm) is RowNorm for norm in (self.norm2, self.norm3))
            and all(isinstance(attn, Undivided) and attn.is_straight() for attn in (self.attn1, self.attn2))
            and all(isinstance(drop, nn.Dropout) and not drop.training for drop in (*drops, *others, *more))
            and all(_is_linear(layer, tokens.dtype) for layer in (first, second, last))
        )  # fmt: skip

    def _drawn(self, tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """The same in place, and with biases added on the way."""
        first, second, gate, last = self.attn1.to_out[0], self.attn2.to_out[0], self.ff.net[0], self.ff.net[-1]
        _add(tokens, self.attn1.attended(self.norm1(tokens), None), first)
        tokens = for_prompts(tokens, prompts)
        _add(tokens, self.attn2.attended(self.norm2.shifted(tokens, first.bias), prompts), second)
        return _add(tokens, gate(self.norm3.shifted(tokens, first.bias + second.bias, last.bias)), last)


def is_plain(block: BasicTransformerBlock) -> bool:
    """Whether a block is three sums and nothing else."""
    has_plain_norms = block.norm_type == "layer_norm" and block.pos_embed is None
    return has_plain_norms and block.attn2 is not None and not block.only_cross_attention and not block._chunk_size


def for_prompts(rows: Tensor, prompts: Tensor | None) -> Tensor:
    """Rows again and again until there are as many as prompts."""
    times = 1 if prompts is None else len(prompts) // len(rows)
    return rows if times == 1 else torch.cat([rows] * times)


def _is_linear(layer: nn.Module, dtype: torch.dtype) -> bool:
    return type(layer) is nn.Linear and layer.bias is not None and layer.weight.dtype == dtype


def _add(tokens: Tensor, rows: Tensor, layer: nn.Linear) -> Tensor:
    """Tokens, plus what a layer without its bias makes of rows, in place."""
    tokens.view(-1, tokens.shape[-1]).addmm_(rows.view(-1, rows.shape[-1]), layer.weight.t())
    return tokens


def sum_in_place(network: nn.Module) -> None:
    """Let a network's transformer blocks compute so; weights and names stay as they are."""
    become(network, {BasicTransformerBlock: Block})
