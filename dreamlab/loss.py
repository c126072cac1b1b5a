"""The DreamBooth loss (Ruiz et al. 2022, arXiv 2208.12242, eq. 2).

    loss = mean over instance samples + prior_weight * mean over prior samples

of each sample's mean squared error. A mask says which samples are prior ones, so odd batches, missing halves and
per-sample weights are right by construction. Called by module.py; all in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """The scalar to minimise and its two halves, each unweighted; a half with no sample in the batch is 0."""

    total: Tensor
    instance: Tensor
    prior: Tensor


def per_sample_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, `(B, ...)` -> `(B,)` float32."""
    return (pred.float() - target.float()).square().flatten(1).mean(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` `(B,)` where `mask` `(B,)` holds, 0 where nothing does (without a NaN in the gradient)."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def dreambooth_loss(
    pred: Tensor, target: Tensor, is_prior: Tensor, prior_weight: float, weights: Tensor | None = None
) -> Losses:
    """Both halves of the loss from predictions and targets `(B, C, h, w)` and `is_prior` `(B,)` bool.

    `weights` `(B,)` multiplies each sample's error, whichever half it is in (min-SNR, for one).
    """
    errors = per_sample_mse(pred, target)
    if weights is not None:
        errors = errors * weights
    instance = masked_mean(errors, ~is_prior)
    prior = masked_mean(errors, is_prior)
    return Losses(instance + prior_weight * prior, instance, prior)
