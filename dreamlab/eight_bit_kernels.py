"""A step of AdamW with moments of 8 bits in Triton, as bitsandbytes takes it (Dettmers et al. 2022, arXiv 2110.02861).

A moment is a code of 8 bits times the largest of its block of 256 numbers. Codes are spread over seven decades, of
FEWEST, 2 FEWEST, 4 FEWEST... even steps each, beside 0 and 1: 1 is the fewest with a sign, 2 without. Which is nearest
follows from the number itself, without a search. What is told of an update lies on the GPU, so it can be recorded.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # numbers that share a scale
SIZE, WARPS = 1024, 4  # numbers of a program, and the warps that share them
REGISTERS = 64  # of a thread at most, so that a GPU has enough programs at a time to wait for none


@triton.jit
def _raised(x, decade, BY: tl.constexpr):
    UP: tl.constexpr = 10.0**BY
    is_below = x < 0.9999999 / UP
    return tl.where(is_below, x * UP, x), tl.where(is_below, decade - BY, decade)


@triton.jit
def _nearest(x, FEWEST: tl.constexpr):
    """Which of the codes above 0 is nearest to x of 0 to 1, counted from the smallest; -1 for 0 itself."""
    x, decade = _raised(tl.maximum(x, 1.001e-7), tl.full(x.shape, 6, tl.int32), 4)
    x, decade = _raised(x, decade, 2)
    x, decade = _raised(x, decade, 1)
    steps = (decade * 2**23 + 0x3F800000).to(tl.float32, bitcast=True) * FEWEST  # 2 to the decade
    step = tl.maximum(x * (1 / 0.9) - 1 / 9, 1e-4) * steps
    step = tl.where(step > FEWEST * 64 - 0.25, FEWEST * 64 + 0.5, step)  # 1 itself is nearer than the last one
    # A float32 as large as 3 2^22 has no digits after the point, so that its bits are an integer
    code = (step + (steps - (FEWEST + 0.5)) + 3 * 2**22).to(tl.int32, bitcast=True) - 0x4B400000
    # A decade's first step is wide: its beginning is nearer to the code before it
    return tl.where(step < tl.where(decade == 0, 0.25 - FEWEST / 18, 0.2), code - 1, code)


@triton.jit
def _read(codes, scales, levels, at, block, is_one, is_block, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    level = tl.load(levels + tl.load(codes + at, mask=is_one, other=0).to(tl.int32))
    scale = tl.load(scales + block, mask=is_block, other=0)
    return tl.reshape(tl.reshape(level, [SIZE // BLOCK, BLOCK]) * scale[:, None], [SIZE])


@triton.jit
def _scaled(moment, scales, block, is_block, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The moment by its block's largest, which is stored."""
    blocks = tl.reshape(moment, [SIZE // BLOCK, BLOCK])
    most = tl.max(tl.abs(blocks), 1)
    tl.store(scales + block, most, mask=is_block)
    return tl.reshape(blocks * (1 / tl.where(most > 0, most, 1))[:, None], [SIZE])


@triton.jit
def _laid(each, start, end, INNER, PIXELS: tl.constexpr, TAKEN: tl.constexpr):
    """What a program takes of a weight (O, I, h, w) whose channels lie last, in the order of memory.

    Where each number lies, whether it is one, which number of the program it is, and where each of those is here.
    """
    WIDTH: tl.constexpr = (TAKEN + PIXELS - 2) // PIXELS + 1  # channels of (O I) that it touches
    first = start // PIXELS
    before, pixel = start - first * PIXELS, each // WIDTH
    column = each - pixel * WIDTH
    number = column * PIXELS + pixel - before
    is_there = (pixel < PIXELS) & (number >= 0) & (number < end - start)
    column += first % INNER
    outer = ((column + 0.5) * (1 / INNER)).to(tl.int32)  # column // INNER, in a fraction of the time
    place = first // INNER * (INNER * PIXELS) + outer * (INNER * (PIXELS - 1)) + pixel * INNER + column
    source = (each + before) % PIXELS * WIDTH + (each + before) // PIXELS
    return place, is_there, tl.where(is_there, number, 0), source


@triton.jit(do_not_specialize=["INNER"])
def _step(
    p, g, codes1, codes2, scales1, scales2, levels1, levels2, told, N, INNER, beta1, beta2,
    PIXELS: tl.constexpr, TAKEN: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(told + 4) == 0:
        return
    start, each = tl.program_id(0) * TAKEN, tl.arange(0, SIZE)
    end = tl.minimum(start + TAKEN, N)
    at, block = start + each, start // BLOCK + tl.arange(0, SIZE // BLOCK)
    is_one, is_block = at < end, block * BLOCK < end
    if PIXELS == 1:
        grad = tl.load(g + at, mask=is_one, other=0)
    else:
        place, is_there, number, source = _laid(each, start, end, INNER, PIXELS, TAKEN)
        grad = tl.gather(tl.load(g + place, mask=is_there, other=0), source, 0)
    grad = grad.to(tl.float32) * tl.load(told + 3)
    m = _read(codes1, scales1, levels1, at, block, is_one, is_block, SIZE, BLOCK) * beta1 + (1 - beta1) * grad
    v = _read(codes2, scales2, levels2, at, block, is_one, is_block, SIZE, BLOCK) * beta2 + (1 - beta2) * grad * grad
    m, v = tl.where(is_one, m, 0), tl.where(is_one, v, 0)
    way = m / (tl.sqrt(v) + tl.load(told + 1)) * tl.load(told)
    if PIXELS == 1:
        tl.store(p + at, (tl.load(p + at, mask=is_one) - way) * tl.load(told + 2), mask=is_one)
    else:
        way = tl.gather(way, number, 0)
        tl.store(p + place, (tl.load(p + place, mask=is_there) - way) * tl.load(told + 2), mask=is_there)
    x = _scaled(m, scales1, block, is_block, SIZE, BLOCK)
    code = _nearest(tl.abs(x), 1)
    # bitsandbytes keeps the sign of what is nearly 0, and has no code for -1
    code = tl.where(x < 0, 126 - tl.minimum(tl.maximum(code, 0), 126), 128 + code)
    tl.store(codes1 + at, code.to(tl.uint8), mask=is_one)
    code = 1 + _nearest(_scaled(v, scales2, block, is_block, SIZE, BLOCK), 2)
    tl.store(codes2 + at, code.to(tl.uint8), mask=is_one)


def step(weight: Tensor, gradient: Tensor, state: dict[str, Any], told: Tensor, betas: tuple[float, float]) -> None:
    """Step a float32 weight, and the moments in bitsandbytes' `state` of it, in place.

    `told` (5,), float32: the rate with both corrections of bias, epsilon with the second, 1 - rate x decay, what the
    gradient is multiplied by, and 0 where there is to be no step. A gradient that lies as `weight` does isn't copied.
    """
    inner, pixels = _inner(weight)
    gradient = gradient.contiguous(memory_format=torch.channels_last if pixels > 1 else torch.contiguous_format)
    kept = [state[key] for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")]
    taken = SIZE - BLOCK if pixels > 1 else SIZE  # the rest is room for channels that it has a part of
    _step[triton.cdiv(weight.numel(), taken),](
        weight, gradient, *kept, told, weight.numel(), inner, *betas, pixels, taken, SIZE, BLOCK,
        num_warps=WARPS, maxnreg=REGISTERS,
    )  # fmt: skip


def _inner(weight: Tensor) -> tuple[int, int]:
    """I and h w of a weight (O, I, h, w) whose channels lie last; 1 and 1 where memory is in the order of the shape."""
    if weight.is_contiguous():
        return 1, 1
    if not weight.is_contiguous(memory_format=torch.channels_last) or weight[0, 0].numel() > BLOCK // 2:
        raise ValueError("a weight must be contiguous, or have its channels last and at most 128 pixels")
    return weight.shape[1], weight.shape[2] * weight.shape[3]
