"""Layer norm of rows and its gradients, in Triton: what row_norms.py runs on a GPU.

A program holds some whole rows, so that nothing but them need be kept for the way back. All is computed in float32,
added in a fixed order, and rounded once at the end.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 2048  # that a program holds at a time, and the longest row
PROGRAMS = 528  # four for each multiprocessor of a large GPU: each adds up gradients of weight and bias for its rows


@triton.jit
def _normalised(values, is_one, C, eps):
    """Rows less their mean and over their deviation, and 1 / deviation."""
    away = tl.where(is_one, values - (tl.sum(values, 1) / C)[:, None], 0)
    rstd = 1 / tl.sqrt(tl.sum(away * away, 1) / C + eps)
    return away * rstd[:, None], rstd[:, None]


@triton.jit
def _place(row, c, M, C, ROWS: tl.constexpr):
    """Where rows from `row` on lie, and which there are."""
    m = row + tl.arange(0, ROWS)
    return m.to(tl.int64)[:, None] * C + c[None, :], (m < M)[:, None] & (c < C)[None, :]


@triton.jit
def _normalise(
    x, y, weight, bias, shift, later, M, C, eps, SHIFT: tl.constexpr, LATER: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, COLUMNS)
    at, is_one = _place(tl.program_id(0) * ROWS, c, M, C, ROWS)
    values = tl.load(x + at, mask=is_one, other=0).to(tl.float32)
    if SHIFT:
        values += tl.load(shift + c, mask=c < C, other=0).to(tl.float32)[None, :]
    if LATER:
        more = values + tl.load(later + c, mask=c < C, other=0).to(tl.float32)[None, :]
        tl.store(x + at, more.to(x.dtype.element_ty), mask=is_one)
    normalised, _ = _normalised(values, is_one, C, eps)
    w = tl.load(weight + c, mask=c < C, other=0).to(tl.float32)[None, :]
    z = normalised * w + tl.load(bias + c, mask=c < C, other=0).to(tl.float32)[None, :]
    tl.store(y + at, z.to(y.dtype.element_ty), mask=is_one)


@triton.jit
def _gradients(x, dy, dx, weight, sums, M, C, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr):
    """The rows' and, of a program's rows, the sums of dy times the normalised and of dy."""
    c = tl.arange(0, COLUMNS)
    w = tl.load(weight + c, mask=c < C, other=0).to(tl.float32)[None, :]
    of_weight, of_bias = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for step in range(STEPS):
        at, is_one = _place((tl.program_id(0) * STEPS + step) * ROWS, c, M, C, ROWS)
        normalised, rstd = _normalised(tl.load(x + at, mask=is_one, other=0).to(tl.float32), is_one, C, eps)
        grad = tl.load(dy + at, mask=is_one, other=0).to(tl.float32)
        of_weight += tl.sum(grad * normalised, 0)
        of_bias += tl.sum(grad, 0)
        grad *= w
        along = (tl.sum(grad * normalised, 1) / C)[:, None]
        grad = (grad - (tl.sum(grad, 1) / C)[:, None] - normalised * along) * rstd
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=is_one)
    at = tl.program_id(0) * 2 * C + c
    tl.store(sums + at, of_weight, mask=c < C)
    tl.store(sums + at + C, of_bias, mask=c < C)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """M, C, and the tile that a program holds."""
    c = x.shape[-1]
    columns = triton.next_power_of_2(c)
    return x.numel() // c, c, max(1, NUMBERS // columns), columns


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None, later: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The normalised rows `(..., C)` of `x`, which must be contiguous; C at most NUMBERS.

    A `shift` `(C,)` is added to the rows first. With `later` `(C,)`, `x` becomes `x + shift + later` in place.
    """
    m, c, rows, columns = _sizes(x)
    y = torch.empty_like(x)
    told, more = (x if one is None else one for one in (shift, later))
    _normalise[(triton.cdiv(m, rows),)](
        x, y, weight, bias, told, more, m, c, eps, shift is not None, later is not None, rows, columns
    )  # fmt: skip
    return y


def gradients(x: Tensor, dy: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Those of rows, weight and bias, the latter two in float32; `dy` must be contiguous, too."""
    m, c, rows, columns = _sizes(x)
    tiles = triton.cdiv(m, rows)
    steps = triton.next_power_of_2(triton.cdiv(tiles, PROGRAMS))  # of few kinds: Triton compiles for each
    programs = triton.cdiv(tiles, steps)
    dx, sums = torch.empty_like(x), torch.empty(programs, 2, c, device=x.device)
    _gradients[(programs,)](x, dy, dx, weight, sums, m, c, eps, rows, columns, steps)
    of_weight, of_bias = sums.sum(0)
    return dx, of_weight, of_bias
