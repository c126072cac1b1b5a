"""Linear layers that a CPU computes as convolutions of one pixel, where that is twice as fast.

PyTorch multiplies float32 matrices by MKL, which leaves half of an AMD CPU's AVX-512 unused, and convolves by oneDNN,
which doesn't. Tokens in a row are an image with its channels last. In half precision oneDNN does both.
"""

import platform
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from dreamlab.becoming import become

FEWEST = 256  # rows that make up for the longer way


class Linear(nn.Linear):
    """nn.Linear of `(..., in)` to `(..., out)`."""

    def forward(self, input: Tensor) -> Tensor:
        is_here = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.compiler.is_compiling()
        if not is_here or input.numel() < FEWEST * self.in_features or torch.is_autocast_enabled("cpu"):
            return linear(input, self.weight, self.bias)
        image = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)
        rows = conv2d(image, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
        return rows.reshape(*input.shape[:-1], self.out_features)


def is_quicker() -> bool:
    """Whether this is such a CPU, and PyTorch was built with both libraries."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _about_cpu()


def convolve_linears(network: nn.Module) -> None:
    """Let a network's linear layers compute so; their weights and names stay as they are."""
    become(network, {nn.Linear: Linear})


def _about_cpu() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return platform.processor()
