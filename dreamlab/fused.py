"""Networks whose slow places are computed otherwise: on a GPU norms and gates, on some CPUs linear layers.

A module becomes one of a kind that does the same; weights and their names stay. Called as a model is loaded.
"""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from dreamlab.gates import fuse_gates
from dreamlab.layouts import keep_layouts
from dreamlab.linears import convolve_linears, is_quicker
from dreamlab.norms import fuse_norms
from dreamlab.row_norms import fuse_row_norms
from dreamlab.running_sums import sum_in_place
from dreamlab.subpixels import convolve_before
from dreamlab.undivided import divide_less
from dreamlab.way_up import join_less


def can_fuse() -> bool:
    """Whether there is a GPU that Triton supports: NVIDIA's since Ampere, compute capability 8.0."""
    if find_spec("triton") is None or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 0)


def fuse(networks: Iterable[nn.Module]) -> None:
    """Let networks compute so, where that is quicker; elsewhere they stay as they are."""
    on_gpu, on_cpu = can_fuse(), not torch.cuda.is_available() and is_quicker()
    for network in networks:
        keep_layouts(network)
        divide_less(network)
        sum_in_place(network)
        if on_gpu:
            fuse_norms(network)
            fuse_row_norms(network)
            fuse_gates(network)
            convolve_before(network)
            join_less(network)
        if on_cpu:
            convolve_linears(network)
