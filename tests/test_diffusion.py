"""The forward process against diffusers' DDPMScheduler and against closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dreamlab.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    diffusion_schedule,
    min_snr_weights,
    target,
)

SCHEDULES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
]
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def of(scheduler: DDPMScheduler, prediction_type: str = "epsilon") -> NoiseSchedule:
    """A scheduler of diffusers as ours."""
    return diffusion_schedule(scheduler.alphas_cumprod, prediction_type)


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule["beta_schedule"])
def scheduler(request: pytest.FixtureRequest) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, **request.param)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_noising_is_that_of_diffusers(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor) -> None:
    ours = add_noise(latents, noise, TIMESTEPS, of(scheduler))
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, TIMESTEPS), rtol=1e-6, atol=1e-6)


def test_noising_keeps_unit_variance(scheduler: DDPMScheduler) -> None:
    x, eps = torch.randn(2, 6, 4, 64, 64, generator=torch.Generator().manual_seed(3)).unbind(0)
    noisy = add_noise(x, eps, TIMESTEPS, of(scheduler))
    torch.testing.assert_close(noisy.flatten(1).var(1), torch.ones(6), rtol=0.05, atol=0)


def test_epsilon_target_is_the_noise(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor) -> None:
    assert torch.equal(target(latents, noise, TIMESTEPS, of(scheduler, "epsilon")), noise)


def test_sample_target_is_the_latents(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor) -> None:
    assert torch.equal(target(latents, noise, TIMESTEPS, of(scheduler, "sample")), latents)


def test_v_target_is_that_of_diffusers(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor) -> None:
    ours = target(latents, noise, TIMESTEPS, of(scheduler, "v_prediction"))
    torch.testing.assert_close(ours, scheduler.get_velocity(latents, noise, TIMESTEPS), rtol=1e-6, atol=1e-6)


def test_noisy_latents_and_v_give_both_latents_and_noise_back(latents: Tensor, noise: Tensor) -> None:
    abar = DDPMScheduler().alphas_cumprod
    noisy = add_noise(latents, noise, TIMESTEPS, of(DDPMScheduler()))
    v = target(latents, noise, TIMESTEPS, of(DDPMScheduler(), "v_prediction"))
    a, s = (value.reshape(-1, 1, 1, 1) for value in (abar[TIMESTEPS].sqrt(), (1 - abar[TIMESTEPS]).sqrt()))
    torch.testing.assert_close(a * noisy - s * v, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s * noisy + a * v, noise, rtol=1e-5, atol=1e-5)


def test_snr_has_its_closed_form() -> None:
    schedule = diffusion_schedule(torch.tensor([0.5, 0.8, 0.9]), "epsilon")
    torch.testing.assert_close(schedule.snr, torch.tensor([1.0, 4.0, 9.0]))


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [("epsilon", [1.0, 1.0, 5 / 9]), ("v_prediction", [1 / 2, 4 / 5, 5 / 10]), ("sample", [1.0, 4.0, 5.0])],
)
def test_min_snr_weights_clip_at_gamma_in_latent_space(prediction_type: str, expected: list[float]) -> None:
    abar = torch.tensor([0.5, 0.8, 0.9])  # SNR 1, 4 and 9
    weights = min_snr_weights(torch.tensor([0, 1, 2]), diffusion_schedule(abar, prediction_type), gamma=5.0)
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_an_unknown_prediction_type_is_named_with_the_known_ones(latents: Tensor, noise: Tensor) -> None:
    known = ", ".join((*PREDICTION_TYPES, "flow"))
    with pytest.raises(ValueError, match=f"'score'; known: {known}"):
        target(latents, noise, TIMESTEPS, of(DDPMScheduler(), "score"))
    with pytest.raises(ValueError, match="'flow'; known: "):
        min_snr_weights(TIMESTEPS, of(DDPMScheduler(), "flow"), 5.0)
