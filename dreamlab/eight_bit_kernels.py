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

BLOCK, BLOCKS = 256, 8  # numbers that share a scale, and how many such blocks a program takes
COLUMNS = 2048  # of the numbers whose moments are float32


@triton.jit
def _place(at, INNER, PIXELS: tl.constexpr):
    """Where numbers of a weight (O, I, h, w) lie, whose moments are in that order: its channels may lie last."""
    if PIXELS == 1:
        return at
    outer, rest = at // (INNER * PIXELS), at % (INNER * PIXELS)
    return outer * (INNER * PIXELS) + rest % PIXELS * INNER + rest // PIXELS


@triton.jit
def _moved(p, place, is_one, m, v, told):
    """The weight after its step."""
    rate, eps, decay = tl.load(told), tl.load(told + 1), tl.load(told + 2)
    return (tl.load(p + place, mask=is_one, other=0) - rate * m / (tl.sqrt(v) + eps)) * decay


@triton.jit
def _nearest(x, FEWEST: tl.constexpr):
    """Which of the codes above 0 is nearest to x of 0 to 1, counted from the smallest; -1 for 0 itself."""
    steps, scale = tl.full(x.shape, FEWEST, tl.float32), tl.full(x.shape, 1e6, tl.float32)
    top, count, up = 1e-6, FEWEST * 1.0, 1e6
    for _ in tl.static_range(6):
        is_above = x > top * (1 + 0.9 / count)  # half-way to the next decade's first code
        top, count, up = top * 10, count * 2, up * 0.1
        steps, scale = tl.where(is_above, count, steps), tl.where(is_above, up, scale)
    step = tl.minimum(tl.maximum(tl.floor((x * scale - 0.1) / 0.9 * steps), 0), steps - 1)
    code = (steps - FEWEST + step).to(tl.int32)
    code = tl.where(x > 1 - 0.225 / (FEWEST * 64), FEWEST * 127, code)
    return tl.where(x < 0.5e-7 + 0.225e-6 / FEWEST, -1, code)


@triton.jit
def _read(codes, scales, levels, at, block, is_one, is_block):
    level = tl.load(levels + tl.load(codes + at, mask=is_one, other=0).to(tl.int32))
    return level * tl.load(scales + block, mask=is_block, other=0)[:, None]


@triton.jit
def _scaled(moment, scales, block, is_block):
    """The moment by its block's largest, which is stored."""
    most = tl.max(tl.abs(moment), 1)
    tl.store(scales + block, most, mask=is_block)
    return moment / tl.where(most > 0, most, 1)[:, None]


@triton.jit(do_not_specialize=["INNER"])
def _step_in_8(
    p, g, codes1, codes2, scales1, scales2, levels1, levels2, told, N, INNER, beta1, beta2,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    if tl.load(told + 4) == 0:
        return
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    place, is_one, is_block = _place(at, INNER, PIXELS), at < N, block * BLOCK < N
    grad = tl.load(g + place, mask=is_one, other=0).to(tl.float32) * tl.load(told + 3)
    m = _read(codes1, scales1, levels1, at, block, is_one, is_block) * beta1 + (1 - beta1) * grad
    v = _read(codes2, scales2, levels2, at, block, is_one, is_block) * beta2 + (1 - beta2) * grad * grad
    m, v = tl.where(is_one, m, 0), tl.where(is_one, v, 0)
    tl.store(p + place, _moved(p, place, is_one, m, v, told), mask=is_one)
    x = _scaled(m, scales1, block, is_block)
    code = _nearest(tl.abs(x), 1)
    # bitsandbytes keeps the sign of what is nearly 0, and has no code for -1
    code = tl.where(x < 0, 126 - tl.minimum(tl.maximum(code, 0), 126), 128 + code)
    tl.store(codes1 + at, code.to(tl.uint8), mask=is_one)
    code = 1 + _nearest(_scaled(v, scales2, block, is_block), 2)
    tl.store(codes2 + at, code.to(tl.uint8), mask=is_one)


@triton.jit(do_not_specialize=["INNER"])
def _step_in_32(p, g, m, v, told, N, INNER, beta1, beta2, PIXELS: tl.constexpr, COLUMNS: tl.constexpr):
    if tl.load(told + 4) == 0:
        return
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    place, is_one = _place(at, INNER, PIXELS), at < N
    grad = tl.load(g + place, mask=is_one, other=0).to(tl.float32) * tl.load(told + 3)
    first = tl.load(m + at, mask=is_one, other=0) * beta1 + (1 - beta1) * grad
    second = tl.load(v + at, mask=is_one, other=0) * beta2 + (1 - beta2) * grad * grad
    tl.store(p + place, _moved(p, place, is_one, first, second, told), mask=is_one)
    tl.store(m + at, first, mask=is_one)
    tl.store(v + at, second, mask=is_one)


def step(weight: Tensor, gradient: Tensor, state: dict[str, Any], told: Tensor, betas: tuple[float, float]) -> None:
    """Step a float32 weight, and the moments in bitsandbytes' `state` of it, in place.

    `told` (5,), float32: the rate with both corrections of bias, epsilon with the second, 1 - rate x decay, what the
    gradient is multiplied by, and 0 where there is to be no step. A gradient that lies as `weight` does isn't copied.
    """
    n, (inner, pixels) = weight.numel(), _laid(weight)
    gradient = gradient.contiguous(memory_format=torch.channels_last if pixels > 1 else torch.contiguous_format)
    if state["state1"].dtype == torch.float32:
        moments = state["state1"], state["state2"]
        _step_in_32[triton.cdiv(n, COLUMNS),](weight, gradient, *moments, told, n, inner, *betas, pixels, COLUMNS)
        return
    kept = [state[key] for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")]
    grid = (triton.cdiv(n, BLOCK * BLOCKS),)
    _step_in_8[grid](weight, gradient, *kept, told, n, inner, *betas, pixels, BLOCK, BLOCKS)


def _laid(weight: Tensor) -> tuple[int, int]:
    """I and h w of a weight (O, I, h, w) whose channels lie last; 1 and 1 where memory is in the order of the shape."""
    if weight.is_contiguous():
        return 1, 1
    if not weight.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("a weight must be contiguous, or have its channels last")
    return weight.shape[1], weight.shape[2] * weight.shape[3]
