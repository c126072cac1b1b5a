"""The forward process and its targets: pure maths on tensors, in float32.

Noising is  x_t = signal[t] x_0 + noise[t] eps  for every family. Of diffusion, with abar_t the cumulated alphas, the
tables are sqrt(abar_t) and sqrt(1 - abar_t) (Ho et al. 2020, arXiv 2006.11239, eq. 4), and a network is trained to
predict eps, or v = signal eps - noise x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D), or x_0 itself. Of flow
matching they are 1 - sigma_t and sigma_t, and the network predicts the velocity eps - x_0 (Esser et al. 2024,
arXiv 2403.03206, eq. 13). Called by module.py; equal to diffusers' schedulers, which the tests hold it to.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")  # of diffusion
FLOW = "flow"


@dataclass(frozen=True)
class NoiseSchedule:
    """What a family's forward process is at each of its T timesteps, the cleanest first."""

    signal: Tensor  # (T,) float32
    noise: Tensor  # (T,) float32
    snr: Tensor  # (T,) signal² / noise², float32
    told: Tensor  # (T,) what the network is told
    prediction_type: str  # one of PREDICTION_TYPES, or FLOW
    density: str = "uniform"  # of timesteps in training, one of dreamlab.randomness.DENSITIES

    def __len__(self) -> int:
        return len(self.signal)

    def to(self, device: torch.device) -> "NoiseSchedule":
        """The same on another device."""
        tables = {name: getattr(self, name).to(device) for name in ("signal", "noise", "snr", "told")}
        return replace(self, **tables)


def diffusion_schedule(alphas_cumprod: Tensor, prediction_type: str) -> NoiseSchedule:
    """Diffusion's schedule from abar_t `(T,)`; the network is told t."""
    abar = alphas_cumprod.float()
    return NoiseSchedule(abar.sqrt(), (1 - abar).sqrt(), abar / (1 - abar), torch.arange(len(abar)), prediction_type)


def flow_schedule(sigmas: Tensor) -> NoiseSchedule:
    """Flow matching's schedule from sigma_t `(T,)`, rising to 1; the network is told T sigma_t."""
    sigmas = sigmas.float()
    return NoiseSchedule(1 - sigmas, sigmas, (1 / sigmas - 1).square(), sigmas * len(sigmas), FLOW, "logit_normal")


def _per_sample(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """`values[timesteps]` in float32, shaped `(B, 1, ..., 1)` to multiply `like` `(B, ...)`."""
    picked = values.to(device=like.device, dtype=torch.float32)[timesteps.to(like.device)]
    return picked.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t from x_0 `latents` and eps `noise`, both `(B, C, h, w)`; `timesteps` `(B,)` index `schedule`."""
    signal, share = (_per_sample(table, timesteps, latents) for table in (schedule.signal, schedule.noise))
    return signal * latents + share * noise


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the network is to predict, `(B, C, h, w)`; raises ValueError for an unknown `prediction_type`."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    if schedule.prediction_type == FLOW:
        return noise - latents
    if schedule.prediction_type == "v_prediction":
        signal, share = (_per_sample(table, timesteps, latents) for table in (schedule.signal, schedule.noise))
        return signal * noise - share * latents
    known = ", ".join((*PREDICTION_TYPES, FLOW))
    raise ValueError(f"unknown prediction_type {schedule.prediction_type!r}; known: {known}")


def min_snr_weights(timesteps: Tensor, schedule: NoiseSchedule, gamma: float) -> Tensor:
    """Loss weights min(SNR, gamma) in x_0 space, `(B,)` (Hang et al. 2023, arXiv 2303.09556, eq. 4).

    Divided by SNR for epsilon and by SNR + 1 for v, since those losses already carry that factor. The paper has none
    for flow matching: ValueError.
    """
    ratio = schedule.snr[timesteps.to(schedule.snr.device)]
    clipped = ratio.clamp(max=gamma)
    divisor = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
    if schedule.prediction_type not in divisor:
        raise ValueError(f"no min-SNR for prediction_type {schedule.prediction_type!r}; known: {', '.join(divisor)}")
    return clipped / divisor[schedule.prediction_type]
