"""The DreamBooth loss (Ruiz et al. 2022, arXiv 2208.12242, eq. 2).

    loss = mean over instance samples + prior_weight * mean over prior samples

of each sample's mean error, squared or Huber. A mask says which samples are prior ones, so odd batches, missing
halves and per-sample weights are right by construction. Called by module.py; all in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """The scalar to minimise and its two halves, each unweighted; a half with no sample in the batch is 0."""

    total: Tensor
    instance: Tensor
    prior: Tensor
    errors: Tensor  # (B,) each sample's, weighted


def per_sample_error(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, huber_delta: float | None = None
) -> Tensor:
    """Mean error of each sample, `(B, C, h, w)` -> `(B,)` float32: squared, or Huber's where a delta is given.

    Huber's equals the squared error up to `huber_delta` and goes on in a straight line of the same slope. `mask`
    `(B, 1, h, w)` in [0, 1] makes it a weighted mean; a sample that is masked everywhere has no error.
    """
    error = pred.float() - target.float()
    squared = error.square()
    if huber_delta is not None:
        squared = torch.where(error.abs() <= huber_delta, squared, huber_delta * (2 * error.abs() - huber_delta))
    if mask is None:
        return squared.flatten(1).mean(1)
    weight = mask.expand_as(squared).flatten(1)
    return (squared.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` `(B,)` where `mask` `(B,)` holds, 0 where nothing does (without a NaN in the gradient)."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def dreambooth_loss(
    pred: Tensor, target: Tensor, is_prior: Tensor, prior_weight: float, weights: Tensor | None = None, *,
    mask: Tensor | None = None, huber_delta: float | None = None,
) -> Losses:  # fmt: skip
    """Both halves of the loss from predictions and targets `(B, C, h, w)` and `is_prior` `(B,)` bool.

    `weights` `(B,)` multiplies each sample's error, whichever half it is in (min-SNR, for one). `mask` and
    `huber_delta` are per_sample_error's.
    """
    errors = per_sample_error(pred, target, mask, huber_delta)
    if weights is not None:
        errors = errors * weights
    instance = masked_mean(errors, ~is_prior)
    prior = masked_mean(errors, is_prior)
    return Losses(instance + prior_weight * prior, instance, prior, errors)
