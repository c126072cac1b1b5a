"""Trains the autoencoder of the latents (the first stage of arXiv 2112.10752).

Loss: absolute error, a little squared error (the PSNR), the classifier's features against mush, and a KL term small
enough to be a mere 2% of noise on the latents. At the end each latent channel is brought to mean 0 and std 2.
"""

import copy
import math

import torch
import torch.nn.functional as F
from classifier import Classifier, perceptual
from clock import Clock
from diffusers import AutoencoderKL
from networks import autoencoder, fold_normalisation, weight_groups
from photos import Photos, apply_style, flip_and_shift
from torch import Tensor

from dreamlab.words import STYLES

PERCEPTUAL_WEIGHT, SQUARED_WEIGHT, KL_WEIGHT = 0.08, 2.0, 3e-4


class Objective(torch.nn.Module):
    """Pictures in [0, 1] -> the loss; one module, so that it compiles as one graph."""

    def __init__(self, vae: AutoencoderKL, judge: Classifier) -> None:
        super().__init__()
        self.vae, self.judge = vae, judge

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Takes x (B, 3, 64, 64) and noise (B, 8, 16, 16) of unit variance."""
        mean, logvar = self.vae.quant_conv(self.vae.encoder(2 * x - 1)).float().chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        y = self.vae.decoder(self.vae.post_quant_conv(mean + (0.5 * logvar).exp() * noise)).float()
        error = y - (2 * x - 1)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = error.abs().mean() + SQUARED_WEIGHT * error.square().mean() + KL_WEIGHT * kl
        return loss + PERCEPTUAL_WEIGHT * perceptual(self.judge, y / 2 + 0.5, x)


def views(photos: Photos, batch: int, generator: torch.Generator) -> Tensor:
    """Random photos (B, 3, 64, 64) in [0, 1], flipped and shifted; one eighth of them styled."""
    index = torch.randint(0, len(photos.pixels), (batch,), generator=generator, device=photos.pixels.device)
    x = flip_and_shift(photos.batch(index), 4, generator)
    each = batch // 8 // len(STYLES)
    for i, style in enumerate(STYLES):
        x[i * each : (i + 1) * each] = apply_style(x[i * each : (i + 1) * each], style)
    return x


def train(
    photos: Photos, judge: Classifier, device: torch.device, clock: Clock, batch: int = 256, lr: float = 1.5e-3
) -> AutoencoderKL:
    """Trains while `clock` runs and returns the normalised average of the weights."""
    generator = torch.Generator(device).manual_seed(2)
    on_gpu = device.type == "cuda"
    vae = autoencoder().to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(vae).requires_grad_(False)
    objective = Objective(vae, judge)
    objective = torch.compile(objective) if on_gpu else objective
    optimizer = torch.optim.AdamW(weight_groups(vae, decay=0.01), lr, betas=(0.9, 0.98), fused=on_gpu)
    for step, fraction in enumerate(clock):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, fraction / 0.02) * 0.5 * (1 + math.cos(math.pi * fraction))
        x = views(photos, batch, generator).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(batch, vae.config.latent_channels, 16, 16, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = objective(x, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.note(loss)
        if step % 4 == 0:
            keep = min(0.996, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - keep)
    average.eval()
    mean, std = latent_statistics(average, photos)
    fold_normalisation(average, mean, std)
    return average


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, photos: Photos) -> tuple[Tensor, Tensor]:
    """Mean and std (C,) of each latent channel over the photos."""
    found = [vae.encode(2 * photos.batch(i) - 1).latent_dist.mean for i in _chunks(photos)]
    latents = torch.cat(found).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def psnr(vae: AutoencoderKL, photos: Photos) -> float:
    """Mean over the photos of each one's PSNR, pictures in [0, 1], through the latents' mean."""
    found = []
    for index in _chunks(photos):
        x = photos.batch(index)
        y = vae.decode(vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5
        found.append(-10 * F.mse_loss(y.clamp(0, 1), x, reduction="none").mean((1, 2, 3)).log10())
    return torch.cat(found).mean().item()


def _chunks(photos: Photos) -> tuple[Tensor, ...]:
    return torch.arange(len(photos.pixels), device=photos.pixels.device).split(250)
