"""Group norm of images whose channels lie last, SiLU included: what norms.py runs on a GPU, in Triton.

An image `(B, C, H, W)` of channels-last memory is B tables of N = H W rows and C columns. Each way there are three
kernels: one sums up S slices of the rows for each channel, one joins the sums of a group's D channels, one passes over
the image. All compute in float32, whatever the image's dtype, add in a fixed order, and round once at the end. Means
and squared deviations of slices are joined as in Chan, Golub and LeVeque 1979, which stays exact where a mean is large.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 128, 32  # of the tile that a program holds
WIDE, LOW = 64, 64  # columns of the forward pass's, and rows of those that it writes: faster so, by a tenth
MOST_SLICES, FEW, CHANNELS = 64, 8, 16  # of the tile that joins the slices of a group
PROGRAMS = 2112  # sixteen for each multiprocessor of a large GPU

# Triton compiles a kernel once for each kind of number that it is told: these needn't be kinds
_kernel = triton.jit(do_not_specialize=["N", "S", "G", "D"])


@triton.jit
def _place(b, n, c, N, C):
    """Where pixels n of channels c lie."""
    return b.to(tl.int64) * N * C + n[:, None] * C + c[None, :]


@triton.jit
def _read(x, shift, at, is_one, b, c, C, SHIFT: tl.constexpr):
    """Numbers of an image, with the shift of their channels where there is one."""
    values = tl.load(x + at, mask=is_one, other=0).to(tl.float32)
    if SHIFT:
        values += tl.load(shift + b * C + c, mask=c < C, other=0).to(tl.float32)[None, :]
    return values


@triton.jit
def _place_of_sums(g, b, s, d, C, S, D):
    """Where the sums of slices s of a group's channels d lie, and which there are."""
    return (b * S + s)[:, None] * C + g * D + d[None, :], (s < S)[:, None] & (d < D)[None, :]


@triton.jit
def _told(c, b, C, G, D, means, rstds, weight, bias):
    """Mean, 1 / deviation, weight and bias of channels c."""
    is_one, group = c < C, b * G + c // D
    mean = tl.load(means + group, mask=is_one, other=0)
    rstd = tl.load(rstds + group, mask=is_one, other=0)
    w = tl.load(weight + c, mask=is_one, other=0).to(tl.float32)
    return mean[None, :], rstd[None, :], w[None, :], tl.load(bias + c, mask=is_one, other=0).to(tl.float32)[None, :]


@triton.jit
def _before_silu(x, dy, mean, rstd, w, bias, SILU: tl.constexpr):
    """The gradient before SiLU, and the normalised image."""
    normalised = (x - mean) * rstd
    if SILU:
        z = normalised * w + bias
        gate = 1 / (1 + tl.exp(-z))
        dy = dy * gate * (1 + z * (1 - gate))
    return dy, normalised


@_kernel
def _slice_moments(
    x, shift, avgs, devs, N, X, C, S, FROM, SHIFT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of each channel in a slice; the X channels are those of C from FROM on."""
    b, s, c = tl.program_id(2), tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.cdiv(N, S)
    first, last = s * rows, tl.minimum(s * rows + rows, N)
    count = tl.zeros((), tl.float32)
    avg, dev = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(first, last, ROWS):
        n = start + tl.arange(0, ROWS)
        is_one = (n < last)[:, None] & (c < X)[None, :]
        values = tl.where(is_one, _read(x, shift, _place(b, n, c, N, X), is_one, b, c, X, SHIFT), 0)
        more = tl.minimum(last - start, ROWS).to(tl.float32)
        own = tl.sum(values, 0) / more
        away = tl.where(is_one, values - own[None, :], 0)
        apart, total = own - avg, count + more
        avg += apart * (more / total)
        dev += tl.sum(away * away, 0) + apart * apart * (count * more / total)
        count = total
    at = (b * S + s) * C + FROM + c
    tl.store(avgs + at, avg, mask=c < X)
    tl.store(devs + at, dev, mask=c < X)


@_kernel
def _group_moments(
    avgs, devs, means, rstds, N, C, S, G, D, eps, SLICES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Mean and 1 / deviation of a group, from its channels' slices."""
    g, b, s = tl.program_id(0), tl.program_id(1), tl.arange(0, SLICES)
    rows = tl.cdiv(N, S)
    in_slice = tl.maximum(tl.minimum(N - s * rows, rows), 0).to(tl.float32)[:, None]
    mean, dev = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, D, CHANNELS):
        at, is_one = _place_of_sums(g, b, s, start + tl.arange(0, CHANNELS), C, S, D)
        mean += tl.sum(tl.sum(tl.load(avgs + at, mask=is_one, other=0) * in_slice, 1), 0) / (N * D)
    for start in range(0, D, CHANNELS):
        at, is_one = _place_of_sums(g, b, s, start + tl.arange(0, CHANNELS), C, S, D)
        apart = tl.where(is_one, tl.load(avgs + at, mask=is_one, other=0) - mean, 0)
        dev += tl.sum(tl.sum(tl.load(devs + at, mask=is_one, other=0) + apart * apart * in_slice, 1), 0)
    tl.store(means + b * G + g, mean)
    tl.store(rstds + b * G + g, 1 / tl.sqrt(dev / (N * D) + eps))


@_kernel
def _normalise(
    x, shift, y, means, rstds, weight, bias, N, X, C, G, D, FROM,
    SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """An image's X channels, which become those of C from FROM on."""
    b, n = tl.program_id(2), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mean, rstd, w, z = _told(FROM + c, b, C, G, D, means, rstds, weight, bias)
    is_one = (n < N)[:, None] & (c < X)[None, :]
    z += (_read(x, shift, _place(b, n, c, N, X), is_one, b, c, X, SHIFT) - mean) * rstd * w
    if SILU:
        z = z / (1 + tl.exp(-z))
    tl.store(y + _place(b, n, FROM + c, N, C), z.to(y.dtype.element_ty), mask=is_one)


@_kernel
def _slice_sums(
    x, dy, firsts, seconds, means, rstds, weight, bias, N, C, S, G, D,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of dz and of dz times the normalised image, of each channel in a slice."""
    b, s, c = tl.program_id(2), tl.program_id(1), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mean, rstd, w, z = _told(c, b, C, G, D, means, rstds, weight, bias)
    rows = tl.cdiv(N, S)
    begin, last = s * rows, tl.minimum(s * rows + rows, N)
    first, second = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for start in range(begin, last, ROWS):
        n = start + tl.arange(0, ROWS)
        at, is_one = _place(b, n, c, N, C), (n < last)[:, None] & (c < C)[None, :]
        values = tl.load(x + at, mask=is_one, other=0).to(tl.float32)
        dz, normalised = _before_silu(
            values, tl.load(dy + at, mask=is_one, other=0).to(tl.float32), mean, rstd, w, z, SILU
        )
        first += tl.sum(dz, 0)
        second += tl.sum(dz * normalised, 0)
    at = (b * S + s) * C + c
    tl.store(firsts + at, first, mask=c < C)
    tl.store(seconds + at, second, mask=c < C)


@_kernel
def _group_sums(firsts, seconds, of_group, of_both, weight, C, S, G, D, SLICES: tl.constexpr, CHANNELS: tl.constexpr):
    """The same sums over a group, each channel times its weight."""
    g, b, s = tl.program_id(0), tl.program_id(1), tl.arange(0, SLICES)
    one, both = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, D, CHANNELS):
        d = start + tl.arange(0, CHANNELS)
        at, is_one = _place_of_sums(g, b, s, d, C, S, D)
        w = tl.load(weight + g * D + d, mask=d < D, other=0).to(tl.float32)[None, :]
        one += tl.sum(tl.sum(tl.load(firsts + at, mask=is_one, other=0) * w, 1), 0)
        both += tl.sum(tl.sum(tl.load(seconds + at, mask=is_one, other=0) * w, 1), 0)
    tl.store(of_group + b * G + g, one)
    tl.store(of_both + b * G + g, both)


@_kernel
def _gradient(
    x, dy, dx, of_group, of_both, means, rstds, weight, bias, N, C, G, D,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The image's, dx = (w dz - mean of w dz - normalised * mean of w dz normalised) / deviation."""
    b, n = tl.program_id(2), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mean, rstd, w, z = _told(c, b, C, G, D, means, rstds, weight, bias)
    at, is_one = _place(b, n, c, N, C), (n < N)[:, None] & (c < C)[None, :]
    values = tl.load(x + at, mask=is_one, other=0).to(tl.float32)
    dz, normalised = _before_silu(values, tl.load(dy + at, mask=is_one, other=0).to(tl.float32), mean, rstd, w, z, SILU)
    group = b * G + c // D
    alone = tl.load(of_group + group, mask=c < C, other=0)[None, :] / (N * D)
    both = tl.load(of_both + group, mask=c < C, other=0)[None, :] / (N * D)
    tl.store(dx + at, (rstd * (dz * w - alone - normalised * both)).to(dx.dtype.element_ty), mask=is_one)


def _sizes(x: Tensor, groups: int, c: int) -> tuple[int, int, int, int, int, int]:
    """B, N, C, D, how many tiles the channels make, and S."""
    b, n = x.shape[0], x.shape[2] * x.shape[3]
    tiles = triton.cdiv(c, COLUMNS)
    slices = min(MOST_SLICES, triton.cdiv(n, ROWS), triton.cdiv(PROGRAMS, tiles * b))
    return b, n, c, c // groups, tiles, max(1, slices)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, has_silu: bool, shift: Tensor | None = None,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The normalised image, and mean and 1 / deviation `(2, B, G)` of its groups; `x` must be channels-last.

    A `shift` `(B, C)`, contiguous, is added to the image first. With an image `beside` it, channels-last too, it is
    that of both joined, whose channels are x's and then the other's.
    """
    b, n, c, d, _, s = _sizes(x, groups, len(weight))
    sums = torch.empty(2, b, s, c, device=x.device)
    moments, y = torch.empty(2, b, groups, device=x.device), x.new_empty(b, *x.shape[2:], c).permute(0, 3, 1, 2)
    parts = [(x, x.shape[1], 0)] if beside is None else [(x, x.shape[1], 0), (beside, beside.shape[1], x.shape[1])]
    told, is_shifted = x if shift is None else shift, shift is not None
    for image, own, first in parts:
        grid = triton.cdiv(own, WIDE), s, b
        _slice_moments[grid](image, told, sums[0], sums[1], n, own, c, s, first, is_shifted, ROWS, WIDE)
    _group_moments[groups, b](
        sums[0], sums[1], moments[0], moments[1], n, c, s, groups, d, eps, FEW if s <= FEW else MOST_SLICES, CHANNELS
    )  # fmt: skip
    for image, own, first in parts:
        grid = triton.cdiv(own, WIDE), triton.cdiv(n, LOW), b
        _normalise[grid](
            image, told, y, moments[0], moments[1], weight, bias, n, own, c, groups, d, first, is_shifted, has_silu,
            LOW, WIDE,
        )  # fmt: skip
    return y, moments


def gradients(
    x: Tensor, dy: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, groups: int, has_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Those of image, weight and bias; `dy` must be channels-last, too."""
    b, n, c, d, tiles, s = _sizes(x, groups, len(weight))
    sums = torch.empty(2, b, s, c, device=x.device)
    joined, dx = torch.empty(2, b, groups, device=x.device), torch.empty_like(x)
    told = moments[0], moments[1], weight, bias
    _slice_sums[tiles, s, b](x, dy, sums[0], sums[1], *told, n, c, s, groups, d, has_silu, ROWS, COLUMNS)
    _group_sums[groups, b](
        sums[0], sums[1], joined[0], joined[1], weight, c, s, groups, d, MOST_SLICES, CHANNELS
    )  # fmt: skip
    grid = tiles, triton.cdiv(n, ROWS), b
    _gradient[grid](x, dy, dx, joined[0], joined[1], *told, n, c, groups, d, has_silu, ROWS, COLUMNS)
    of_bias, of_weight = sums.sum((1, 2))
    return dx, of_weight, of_bias
