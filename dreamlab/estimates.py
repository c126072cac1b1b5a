"""Estimates: a mean with its confidence interval, by the bootstrap (Efron 1979).

A statistic is a function of how often each unit was drawn: counts `(B, n)` in, values `(B,)` out. A unit is what
would be drawn anew if the measurement were repeated: a prompt with all its images, a pair of images from one noise, a
photo. Resampling single images of a few prompts would call the choice of prompts certain, and give intervals that
are too narrow.

Intervals are percentiles of the bootstrap values, widened for small n as in Hesterberg 2015 (arXiv 1411.5279,
"expanded percentile"): for a mean of normal values they then agree with Student's t.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

DRAWS = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval and the number of units resampled; no interval from fewer than two."""

    value: float
    low: float | None
    high: float | None
    units: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(statistic: Callable[[Tensor], Tensor], units: int, seed: int = 0) -> Estimate:
    """The interval of `statistic`, a function of counts `(B, units)` float32; every unit once gives the value."""
    value = float(statistic(torch.ones(1, units))[0])
    if units < 2:
        return Estimate(value, None, None, units)
    rng = np.random.default_rng(seed)
    counts = torch.from_numpy(rng.multinomial(units, np.full(units, 1 / units), DRAWS)).float()
    values = statistic(counts).double().numpy()
    values = values[np.isfinite(values)]  # a draw of one unit alone holds no pair
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, units - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), units)


def estimate_mean(scores: Tensor, groups: Tensor | None = None, seed: int = 0) -> Estimate:
    """Mean of `scores` `(N,)`; the unit is a group of `groups` `(N,)` int64, such as a prompt, or else each score.

    Counts w over groups with sums s and sizes m give sum(w s) / sum(w m), the mean over all images drawn.
    """
    if groups is None:
        groups = torch.arange(len(scores))
    names, index = groups.unique(return_inverse=True)
    sums = torch.zeros(len(names)).index_add_(0, index.cpu(), scores.float().cpu())
    sizes = torch.bincount(index.cpu()).float()
    return bootstrap(lambda counts: (counts @ sums) / (counts @ sizes), len(names), seed)


def mean_pair(matrix: Tensor, counts: Tensor) -> Tensor:
    """Mean of `matrix` `(n, n)` over pairs of two different units, `counts` `(B, n)` weighting them: `(B,)` values.

    sum_{i != j} w_i w_j D_ij / sum_{i != j} w_i w_j: a unit drawn twice is not compared with itself, which would
    pull distances towards 0.
    """
    others = matrix.float().cpu().clone()
    others.fill_diagonal_(0)
    pairs = counts.sum(1).square() - counts.square().sum(1)
    return ((counts @ others) * counts).sum(1) / pairs


def estimate_mean_pair(matrix: Tensor, seed: int = 0) -> Estimate:
    """Mean of a symmetric matrix `(n, n)` over pairs of different units; the unit is a row with its column."""
    return bootstrap(lambda counts: mean_pair(matrix, counts), len(matrix), seed)
