"""Images at twice their size while a GPU draws: a convolution of the small image instead of the large one.

Where each pixel is repeated four times, three by three of them show only two by two different ones. So each of the four
pixels of a place has a kernel of two by two, whose weights are sums of the large kernel's: 16 products instead of 36.
All four come from one convolution, and subpixel_kernels.py puts them where they belong (Shi et al. 2016, arXiv
1609.05158, have the arrangement). Elsewhere it is diffusers'.
"""

from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from dreamlab.becoming import become
from dreamlab.biases import is_drawing_in_half


class Doubled(Upsample2D):
    """Upsample2D of `(B, C, H, W)`; nearest neighbours, and a convolution."""

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        h, w = hidden_states.shape[-2:]
        if not is_drawing_in_half(hidden_states) or output_size not in (None, (2 * h, 2 * w)):
            image: Tensor = super().forward(hidden_states, output_size, *args, **kwargs)
            return image
        from dreamlab.subpixel_kernels import interleave, sums_of_taps

        # Told to pad, cuDNN convolves some sizes by a kernel that takes twice as long
        image = pad(hidden_states.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1))
        return interleave(conv2d(image, sums_of_taps(self.conv.weight)), self.conv.bias)


def convolve_before(network: nn.Module) -> None:
    """Let a network's layers that double an image compute so; weights and names stay as they are."""
    become(network, {Upsample2D: Doubled}, _is_plain)


def _is_plain(layer: Upsample2D) -> bool:
    conv = getattr(layer, "conv", None)
    if type(conv) is not nn.Conv2d or layer.norm is not None or not layer.interpolate:
        return False
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv.bias is not None and sizes == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
