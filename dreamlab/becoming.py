"""Modules that become of a kind that computes the same otherwise: what fused.py does to a network, layer by layer."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def become(
    network: nn.Module, kinds: Mapping[type[nn.Module], type[nn.Module]], can: Callable[[Any], bool] = lambda _: True
) -> list[Any]:  # fmt: skip
    """Let modules of exactly these kinds be of the other one, where they can; their weights and names stay as they are.

    Returns those that have become so.
    """
    found = [module for module in network.modules() if type(module) in kinds and can(module)]
    for module in found:
        module.__class__ = kinds[type(module)]
    return found
