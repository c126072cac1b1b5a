"""Frozen weights kept in the precision that computes with them: half the memory, and the very same numbers.

Under autocast a layer's float32 weights are cast at every call. Where none of them ever learns, as beside LoRA or a new
word, they can as well be kept as what they are cast to. Norms and embeddings compute in float32 and stay as they are.
Called by assemble.py.
"""

from collections.abc import Iterable

import torch
from torch import nn

from dreamlab.precision import IN_HALF

# What may stand beside such weights. DoRA's lengths and LoKr's products are taken of the weights themselves
BESIDE = ("lora", None)


def keep_in(dtype: torch.dtype, networks: Iterable[nn.Module]) -> None:
    """Turn weights that autocast would cast to `dtype` into it, but for networks that compute in float32 anyway."""
    for network in networks:
        if not getattr(network, "stays_float32", False):
            for layer in network.modules():
                if isinstance(layer, IN_HALF):
                    for weight in layer.parameters(recurse=False):
                        weight.data = weight.data.to(dtype)
