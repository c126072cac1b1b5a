"""GEGLU of rows [h, g], and its gradient, in Triton: what gates.py runs on a GPU.

A program takes a piece of some rows. All is computed in float32, whatever the dtype, and rounded once at the end.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 4, 256  # of the tile that a program holds


@triton.jit
def _place(M, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of h, their columns, and which there are."""
    m = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return m.to(tl.int64), d, (m < M) & (d < D)


@triton.jit
def _read(x, row, d, is_one, D):
    """h, g, and the normal distribution up to g."""
    h = tl.load(x + row * 2 * D + d, mask=is_one, other=0).to(tl.float32)
    g = tl.load(x + row * 2 * D + D + d, mask=is_one, other=0).to(tl.float32)
    return h, g, 0.5 * (1 + tl.erf(g * 0.7071067811865476))


@triton.jit
def _gate(x, y, M, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, d, is_one = _place(M, D, ROWS, COLUMNS)
    h, g, below = _read(x, row, d, is_one, D)
    tl.store(y + row * D + d, (h * g * below).to(y.dtype.element_ty), mask=is_one)


@triton.jit
def _gradient(x, dy, dx, M, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, d, is_one = _place(M, D, ROWS, COLUMNS)
    h, g, below = _read(x, row, d, is_one, D)
    grad = tl.load(dy + row * D + d, mask=is_one, other=0).to(tl.float32)
    slope = below + g * tl.exp(-0.5 * g * g) * 0.3989422804014327
    tl.store(dx + row * 2 * D + d, (grad * g * below).to(dx.dtype.element_ty), mask=is_one)
    tl.store(dx + row * 2 * D + D + d, (grad * h * slope).to(dx.dtype.element_ty), mask=is_one)


def gate(x: Tensor) -> Tensor:
    """The product of h and GELU(g), `(..., D)`, of `x` `(..., 2 D)`, which must be contiguous."""
    *rows, d = *x.shape[:-1], x.shape[-1] // 2
    y = torch.empty(*rows, d, dtype=x.dtype, device=x.device)
    m = y.numel() // d
    _gate[triton.cdiv(m, ROWS), triton.cdiv(d, COLUMNS)](x, y, m, d, ROWS, COLUMNS)
    return y


def gradient(x: Tensor, dy: Tensor) -> Tensor:
    """That of `x`; `dy` must be contiguous, too."""
    dx = torch.empty_like(x)
    d = dy.shape[-1]
    m = dy.numel() // d
    _gradient[triton.cdiv(m, ROWS), triton.cdiv(d, COLUMNS)](x, dy, dx, m, d, ROWS, COLUMNS)
    return dx
