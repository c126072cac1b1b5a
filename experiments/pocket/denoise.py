"""Trains the U-Net and the text encoder together on the pool of latents.

v-prediction (Salimans & Ho 2022, arXiv 2202.00512), min-SNR weights with gamma 5 (Hang et al. 2023, arXiv
2303.09556: min(snr, 5) / (snr + 1) for v), 10% empty captions for classifier-free guidance (arXiv 2207.12598), and
an average of the weights. The learning rate follows the share of the time that has passed, so that it reaches zero
when the machine's time is up, however fast the machine.
"""

import copy
import json
import math
from pathlib import Path

import torch
from clock import Clock
from diffusers import UNet2DConditionModel
from latents import Pool
from networks import denoiser, schedule, text_encoder, weight_groups
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

LR, EMPTY_SHARE, GAMMA, AVERAGE_KEEP, AVERAGE_EVERY = 8e-4, 0.1, 5.0, 0.9995, 4


class Learner:
    """The two networks, their averages, the optimizer and the random state: all that resuming needs."""

    def __init__(self, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        torch.manual_seed(4)
        self.device, self.on_gpu = device, device.type == "cuda"
        self.unet = denoiser().to(device, memory_format=torch.channels_last).train()
        self.text = text_encoder(tokenizer).to(device).train()
        self.average_unet, self.average_text = (copy.deepcopy(m).requires_grad_(False) for m in (self.unet, self.text))
        groups = weight_groups(self.unet, self.text, decay=0.02)
        self.optimizer = torch.optim.AdamW(groups, LR, betas=(0.9, 0.99), fused=self.on_gpu)
        self.generator = torch.Generator(device).manual_seed(5)
        self.alphas_cumprod = schedule().alphas_cumprod.to(device)
        self.forward = torch.compile(self.unet) if self.on_gpu else self.unet
        self.updates, self.elapsed_s, self.warm_from = 0, 0.0, 0

    @property
    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        names = ("unet", "text", "average_unet", "average_text", "optimizer")
        return {name: getattr(self, name) for name in names}

    def save(self, file: Path) -> None:
        """Writes everything, by way of a second file so that a cut-off leaves the old one whole."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"generator": self.generator.get_state(), "updates": self.updates, "elapsed_s": self.elapsed_s}
        torch.save(state, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    def load(self, file: Path) -> None:
        """Continues where `save` left off."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"].cpu())
        self.updates, self.elapsed_s = state["updates"], state["elapsed_s"]

    def start(self, pocket: Path, log: Path) -> None:
        """Continues from the averaged weights of an export and its log; the optimizer starts afresh, warming up."""
        unet = UNet2DConditionModel.from_pretrained(pocket / "unet").state_dict()
        text = CLIPTextModel.from_pretrained(pocket / "text_encoder", dtype=torch.float32).state_dict()
        for part, weights in ((self.unet, unet), (self.text, text)):
            part.load_state_dict(weights)
        for part, weights in ((self.average_unet, unet), (self.average_text, text)):
            part.load_state_dict(weights)
        rows = [row for row in map(json.loads, log.read_text().splitlines()) if row["stage"] == "denoise"]
        self.updates = self.warm_from = rows[-1]["step"]
        self.elapsed_s = rows[-1]["elapsed_s"]

    def loss(self, latents: Tensor, token_ids: Tensor) -> Tensor:
        """Mean over the batch of w(snr) |v - v_hat|^2, in float32."""
        timesteps = torch.randint(0, 1000, (len(latents),), generator=self.generator, device=self.device)
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        alpha_bar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy = (signal * latents + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
            hidden = self.text(token_ids).last_hidden_state
            pred = self.forward(noisy, timesteps, hidden, return_dict=False)[0]
        snr = (alpha_bar / (1 - alpha_bar))[:, 0, 0, 0]
        weight = snr.clamp(max=GAMMA) / (snr + 1)
        return (weight * (pred.float() - (signal * noise - sigma * latents)).square().mean((1, 2, 3))).mean()

    def update(self, pool: Pool, batch: int, fraction: float) -> Tensor:
        """One optimizer update at `fraction` of the schedule; returns the loss without waiting for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = (
                LR
                * min(1, (1 + self.updates - self.warm_from) / 500)
                * 0.5
                * (1 + math.cos(math.pi * min(1, fraction)))
            )
        loss = self.loss(*pool.draw(batch, EMPTY_SHARE, self.generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.unet.parameters(), *self.text.parameters()], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.updates % AVERAGE_EVERY == 0:
            self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(AVERAGE_KEEP, (1 + self.updates) / (10 + self.updates)) ** AVERAGE_EVERY
        for mean, live in ((self.average_unet, self.unet), (self.average_text, self.text)):
            torch._foreach_lerp_(list(mean.parameters()), list(live.parameters()), 1 - keep)

    def train(self, pool: Pool, clock: Clock, batch: int = 512) -> None:
        """Trains while `clock` runs; its fractions count the pieces before."""
        for fraction in clock:
            clock.note(self.update(pool, batch, fraction))
        self.elapsed_s = clock.total_s()
