"""Adapters: which weights of a model learn: `full` themselves, those of low_rank.py beside them, or rows of new words.

`adapter.train` names whole parts (`unet`) or subsets of a part's weights (`unet.attention`), several of which add up.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dreamlab import low_rank, pivotal
from dreamlab.errors import UserError, did_you_mean
from dreamlab.inversion import Extended
from dreamlab.low_rank import LowRank

KINDS = ("full", *low_rank.KINDS, *pivotal.KINDS)
# Subsets by part: what the names of their weights contain. The parts are those of every family; the VAE never learns.
_CLIP = {
    "embeddings": r"\bembeddings\.token_embedding\.",
    "attention": r"\.self_attn\.",
    "mlp": r"\.mlp\.",
}
SUBSETS: dict[str, dict[str, str]] = {
    "unet": {
        "attention": r"\.attn[12]\.",
        "self_attention": r"\.attn1\.",
        "cross_attention": r"\.attn2\.",
        "cross_attention_kv": r"\.attn2\.to_[kv]\.",  # Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488)
        "feed_forward": r"\.ff\.",
        "resnets": r"\.resnets\.",
        "down": r"^down_blocks\.",
        "mid": r"^mid_block\.",
        "up": r"^up_blocks\.",
    },
    "transformer": {
        "attention": r"\.attn2?\.",
        "feed_forward": r"\.ff(_context)?\.|^single_transformer_blocks\.\d+\.proj_(mlp|out)\.",
    },
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
}


def trainable(parts: Sequence[str]) -> list[str]:
    """Everything that `adapter.train` may name in a model of these parts."""
    return [name for part in parts for name in (part, *(f"{part}.{subset}" for subset in SUBSETS[part]))]


def check_train(train: Sequence[str], parts: Sequence[str]) -> None:
    """Raise UserError where `adapter.train` names what there isn't, or a part beside a subset of it."""
    if not train:
        raise UserError(f"adapter.train is empty: nothing would learn. Give adapter.train=[{','.join(parts)}].")
    for name in train:
        if name not in trainable(parts):
            raise UserError(
                f"adapter.train has {name!r}, which is no trainable part.{did_you_mean(name, trainable(parts))}"
            )
        part = name.split(".")[0]
        if name != part and part in train:
            raise UserError(f"adapter.train has both {part!r} and {name!r}, which is within it. Leave one of them out.")


def adapt(
    parts: dict[str, nn.Module], train: Sequence[str], gradient_checkpointing: bool, dtype: torch.dtype = torch.float32
) -> nn.ModuleDict:
    """Freeze every part, then thaw the weights that `train` names, in `dtype`; returns the parts they are in, by name.

    Frozen weights beside them stay as they are.
    """
    for part in parts.values():
        part.requires_grad_(False).eval()
    trained = nn.ModuleDict()
    for name in train:
        part_name, _, subset = name.partition(".")
        part = parts[part_name]
        pattern = re.compile(SUBSETS[part_name][subset] if subset else "")
        weights = [weight for key, weight in part.named_parameters() if pattern.search(key)]
        if not weights:
            raise UserError(f"adapter.train has {name!r}, but this model's {part_name} holds no such weights.")
        for weight in weights:
            weight.data = weight.data.to(dtype)
            weight.requires_grad_(True)
        if part_name not in trained:
            trained[part_name] = part.train()
            if gradient_checkpointing:
                checkpoint_activations(part)
    return trained


def add(parts: dict[str, nn.Module], adapter: LowRank, gradient_checkpointing: bool, seed: int) -> nn.ModuleDict:
    """Freeze every part and put adapter weights beside what `adapter` names; returns the parts they are in, by name."""
    layers = {}
    for part in dict.fromkeys(name.split(".")[0] for name in adapter.train):
        subsets = [SUBSETS[part][name.partition(".")[2]] if "." in name else "" for name in adapter.train
                   if name.split(".")[0] == part]  # fmt: skip
        layers[part] = low_rank.layers_of(part, parts[part], adapter.targets, subsets)
        if not layers[part]:
            raise UserError(
                f"adapter.targets=[{','.join(adapter.targets)}] are no layers of {part} that adapter.train holds: there"
                f" are {', '.join(low_rank.TARGETS[part])}. Add one of them, or leave {part} out of adapter.train."
            )
    low_rank.insert(parts, adapter, layers, seed)
    for network in parts.values():
        network.eval()
    trained = nn.ModuleDict({name: parts[name].train() for name in layers})
    if gradient_checkpointing:
        for network in trained.values():
            checkpoint_activations(network)
    return trained


def add_rows(
    parts: dict[str, nn.Module],
    tables: dict[str, Extended],
    trained: nn.ModuleDict | None,
    gradient_checkpointing: bool,
) -> nn.ModuleDict:
    """Let the rows of `tables`, by text encoder, learn beside what is `trained`; alone where that is None.

    Alone, they are returned with every network that their gradient passes through.
    """
    if trained is None:
        for part in parts.values():
            part.requires_grad_(False).eval()
    through = tables if trained is not None else [name for name in parts if name != "vae"]
    trained = nn.ModuleDict() if trained is None else trained
    for name in through:
        if name not in trained:
            trained[name] = parts[name].train()
            if gradient_checkpointing:
                checkpoint_activations(parts[name])
    for table in tables.values():
        table.rows.requires_grad_(True)
    return trained


def checkpoint_activations(part: Any) -> None:
    """Recompute activations in the backward pass: diffusers' and transformers' names for the same switch.

    No random state is put back for it, which a CUDA graph could not record: nothing in these networks is random.
    """
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(part, "enable_gradient_checkpointing"):
        part.enable_gradient_checkpointing(partial(checkpoint, **how))
    else:
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
