"""The forward process and its targets: pure maths on tensors, in float32.

With abar_t = `alphas_cumprod[t]`, noising is  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps  (Ho et al. 2020,
arXiv 2006.11239, eq. 4). A network is trained to predict eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0
(Salimans & Ho 2022, arXiv 2202.00512, appendix D), or x_0 itself. Called by module.py; equal to diffusers'
DDPMScheduler, which the tests hold it to.
"""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def _per_sample(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """`values[timesteps]` in float32, shaped `(B, 1, ..., 1)` to multiply `like` `(B, ...)`."""
    picked = values.to(device=like.device, dtype=torch.float32)[timesteps.to(like.device)]
    return picked.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t from x_0 `latents` and eps `noise`, both `(B, C, h, w)`; `timesteps` `(B,)` index `alphas_cumprod`."""
    abar = _per_sample(alphas_cumprod, timesteps, latents)
    return abar.sqrt() * latents + (1 - abar).sqrt() * noise


def target(prediction_type: str, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What the network is to predict, `(B, C, h, w)`; raises ValueError for an unknown `prediction_type`."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        abar = _per_sample(alphas_cumprod, timesteps, latents)
        return abar.sqrt() * noise - (1 - abar).sqrt() * latents
    raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")


def snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio abar_t / (1 - abar_t) of each timestep, `(B,)` float32."""
    abar = alphas_cumprod.float()[timesteps.to(alphas_cumprod.device)]
    return abar / (1 - abar)


def min_snr_weights(prediction_type: str, timesteps: Tensor, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Loss weights min(SNR, gamma) in x_0 space, `(B,)` (Hang et al. 2023, arXiv 2303.09556, eq. 4).

    Divided by SNR for epsilon and by SNR + 1 for v, since those losses already carry that factor.
    """
    ratio = snr(alphas_cumprod, timesteps)
    clipped = ratio.clamp(max=gamma)
    divisor = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
    if prediction_type not in divisor:
        raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(divisor)}")
    return clipped / divisor[prediction_type]
