"""Adapters: which weights of a model learn. `full` trains whole parts; others will add weights of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dreamlab.errors import UserError, did_you_mean

KINDS = ("full",)


def adapt(parts: dict[str, nn.Module], train: Sequence[str], gradient_checkpointing: bool) -> nn.ModuleDict:
    """Freeze every part, then thaw the ones in `train` as float32 masters; returns those, by name."""
    for part in parts.values():
        part.requires_grad_(False).eval()
    trained = nn.ModuleDict()
    for name in train:
        if name not in parts or name == "vae":
            choices = [key for key in parts if key != "vae"]
            raise UserError(f"adapter.train has {name!r}, which is no trainable part.{did_you_mean(name, choices)}")
        trained[name] = parts[name].to(torch.float32).requires_grad_(True).train()
        if gradient_checkpointing:
            checkpoint_activations(trained[name])
    return trained


def checkpoint_activations(part: Any) -> None:
    """Recompute activations in the backward pass: diffusers' and transformers' names for the same switch."""
    if hasattr(part, "enable_gradient_checkpointing"):
        part.enable_gradient_checkpointing()
    else:
        part.gradient_checkpointing_enable()
