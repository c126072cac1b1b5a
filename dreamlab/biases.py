"""Biases of convolutions, for which a GPU passes over an image once more: where drawing adds them otherwise.

A convolution of one pixel is a matrix product, whose kernel adds the bias as it writes. In a residual block the first
convolution's bias joins the time's, which the norm after it adds as it reads (norms.py), and the second's is added with
the shortcut: of five passes one is left. A tenth of drawing at Stable Diffusion's size went into them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear


class OnePixel(nn.Conv2d):
    """A convolution of one pixel, of `(B, C, H, W)` to `(B, D, H, W)`.

    In float32 it stays one, since PyTorch lets convolutions round to TF32, but not products.
    """

    def forward(self, input: Tensor) -> Tensor:
        is_laid = input.is_contiguous(memory_format=torch.channels_last)
        if not is_laid or not is_drawing_in_half(input):
            return super().forward(input)
        return _image(linear(_rows(input), self.weight.flatten(1), self.bias), input)

    def joined(self, image: Tensor, beside: Tensor) -> Tensor:
        """That of two images joined, `(B, X, H, W)` and `(B, C - X, H, W)`, with their channels last."""
        of_image, of_other = self.weight.flatten(1).tensor_split([image.shape[1]], 1)
        return _image(linear(_rows(image), of_image, self.bias).addmm_(_rows(beside), of_other.t()), image)


def _rows(image: Tensor) -> Tensor:
    """The pixels `(B H W, C)` of an image whose channels lie last."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Pixels as an image of another's size."""
    b, _, h, w = like.shape
    return rows.view(b, h, w, -1).permute(0, 3, 1, 2)


def is_drawing(image: Tensor) -> bool:
    """Whether this runs on a GPU without gradients; a compiled network is left to its compiler."""
    return image.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_drawing_in_half(image: Tensor) -> bool:
    """Whether this runs so in half precision."""
    return image.dtype in (torch.float16, torch.bfloat16) and is_drawing(image)


def without_bias(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """What a convolution makes of an image but for its bias."""
    return conv2d(image, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def total(shortcut: Tensor, image: Tensor, bias: Tensor) -> Tensor:
    """The sum of two images and a bias for each channel, on a GPU."""
    channels_last = torch.channels_last
    if shortcut.dtype != image.dtype or not image.is_contiguous(memory_format=channels_last):
        return shortcut + (image + bias[:, None, None])
    from dreamlab.bias_kernels import add

    return add(shortcut.contiguous(memory_format=channels_last), image, bias)


def fold_biases(block: nn.Module) -> None:
    """Let those convolutions of a block that have one pixel compute so; weights and names stay as they are."""
    for name in ("conv_shortcut", "proj_in", "proj_out"):
        conv = getattr(block, name, None)
        if type(conv) is nn.Conv2d and (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1):
            conv.__class__ = OnePixel
