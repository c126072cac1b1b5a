"""Networks whose slow places a GPU passes over once: group norms, gates, and images that keep their layout.

A module becomes one of a kind that computes the same otherwise; weights and their names stay. Called as a model is
loaded.
"""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from dreamlab.gates import fuse_gates
from dreamlab.layouts import keep_layouts
from dreamlab.norms import fuse_norms


def can_fuse() -> bool:
    """Whether there is a GPU that Triton supports: NVIDIA's since Ampere, compute capability 8.0."""
    if find_spec("triton") is None or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def fuse(networks: Iterable[nn.Module]) -> None:
    """Let diffusers' networks compute so, where they can; elsewhere they stay as they are."""
    if not can_fuse():
        return
    for network in networks:
        fuse_norms(network)
        fuse_gates(network)
        keep_layouts(network)
