"""What subpixels.py runs on a GPU beside its convolution, in Triton.

Of the large image's rows 2i and 2i + 1, the first (a = 0) sees the small one's i - 1, i and i, the second (a = 1) sees
i, i and i + 1: the large kernel's row k falls on the first of two (p = 0) where k <= a, else on the second. With a zero
around the image, a place j of the small convolution sees j - 1 and j, so that pixel a of row i is found at j = i + a.
The same goes for columns.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128  # channels of a tile
PIXELS = 16


@triton.jit
def _sum_taps(weight, sums, C, D, COLUMNS: tl.constexpr):
    d, c = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    for number in tl.static_range(16):  # a, b, p and q
        total = tl.zeros((COLUMNS,), tl.float32)
        for tap in tl.static_range(9):  # k and l
            is_row = (tap // 3 > number // 8) == (number // 2 % 2 > 0)
            is_column = (tap % 3 > number // 4 % 2) == (number % 2 > 0)
            if is_row and is_column:
                total += tl.load(weight + (d * 9 + tap) * C + c, mask=c < C, other=0).to(tl.float32)
        at = ((number // 4 * D + d) * 4 + number % 4) * C + c
        tl.store(sums + at, total.to(sums.dtype.element_ty), mask=c < C)


def sums_of_taps(weight: Tensor) -> Tensor:
    """Kernels `(4 D, C, 2, 2)` of all four pixels, channels last, from those `(D, C, 3, 3)` of the large image."""
    d, c = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last)
    sums = weight.new_empty(4 * d, 2, 2, c).permute(0, 3, 1, 2)
    _sum_taps[(d, triton.cdiv(c, COLUMNS))](weight, sums, c, d, COLUMNS)
    return sums


@triton.jit
def _interleave(
    found, image, bias, count, H, W, D, PIXELS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x, y, b = n % (2 * W), n // (2 * W) % (2 * H), n // (4 * W * H)
    place = (b * (H + 1) + y // 2 + y % 2) * (W + 1) + x // 2 + x % 2
    at = (place * 4 + y % 2 * 2 + x % 2)[:, None] * D + c[None, :]
    is_one = (n < count)[:, None] & (c < D)[None, :]
    told = tl.load(bias + c, mask=c < D, other=0).to(tl.float32)[None, :]
    told += tl.load(found + at, mask=is_one, other=0).to(tl.float32)
    tl.store(image + n[:, None] * D + c[None, :], told.to(image.dtype.element_ty), mask=is_one)


def interleave(found: Tensor, bias: Tensor) -> Tensor:
    """The image `(B, D, 2 H, 2 W)` of what the convolution gives, `(B, 4 D, H + 1, W + 1)`, plus `bias` `(D,)`."""
    found = found.contiguous(memory_format=torch.channels_last)
    b, d, h, w = found.shape[0], found.shape[1] // 4, found.shape[2] - 1, found.shape[3] - 1
    image = found.new_empty(b, 2 * h, 2 * w, d).permute(0, 3, 1, 2)
    count = 4 * b * h * w
    grid = triton.cdiv(count, PIXELS), triton.cdiv(d, COLUMNS)
    _interleave[grid](found, image, bias, count, h, w, d, PIXELS, COLUMNS)
    return image
