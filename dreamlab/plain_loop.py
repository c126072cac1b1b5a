"""DreamBooth as people write it with diffusers alone: what dreamlab's own speed is measured against.

The loop of diffusers' `train_dreambooth.py` with prior preservation, without its arguments: photos are decoded,
resized and encoded by the VAE at each update, the forward pass runs under autocast, weights stay float32, and the loss
is read after each update. Nothing here is used for training; bench.py and its tests call it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import CLIPTextModel, CLIPTokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Photos(Dataset[tuple[Tensor, Tensor]]):
    """Photos of one prompt: pixels `(3, side, side)` in [-1, 1] and token ids `(L,)`."""

    def __init__(self, paths: Sequence[Path], ids: Tensor, side: int) -> None:
        self.paths, self.ids, self.side = paths, ids, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = ImageOps.exif_transpose(Image.open(self.paths[index])).convert("RGB")
        pixels = np.asarray(ImageOps.fit(image, (self.side, self.side), Image.Resampling.BILINEAR), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1), self.ids


def endless(photos: Photos, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of a data set, pass after pass; all of them are whole, even where there are fewer photos."""
    whole = max(1, len(photos) // batch_size) * batch_size
    loader = DataLoader(photos, batch_size, sampler=RandomSampler(photos, num_samples=whole))
    while True:
        yield from loader


class PlainLoop:
    """U-Net and, if `trains_text`, text encoder of a diffusers folder or hub id, with all that an update needs."""

    def __init__(
        self, source: str, *, precision: str, device: torch.device, lr: float, prior_weight: float = 1.0,
        max_grad_norm: float = 1.0, trains_text: bool = True, checkpointing: bool = False,
    ) -> None:  # fmt: skip
        self.dtype, self.device = DTYPES[precision], device
        self.prior_weight, self.max_grad_norm, self.trains_text = prior_weight, max_grad_norm, trains_text
        self.tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer")
        self.noise_scheduler: Any = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
        self.unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet").to(device).train()
        self.text_encoder = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=torch.float32)
        self.text_encoder.to(device).train(trains_text).requires_grad_(trains_text)
        self.vae = AutoencoderKL.from_pretrained(source, subfolder="vae").requires_grad_(False)
        self.vae.to(device, dtype=self.dtype)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            if trains_text:
                self.text_encoder.gradient_checkpointing_enable()
        self.weights = [*self.unet.parameters(), *(self.text_encoder.parameters() if trains_text else ())]
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def tokenize(self, prompt: str) -> Tensor:
        """Token ids `(L,)`, padded to the full length."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = found.input_ids[0]
        return ids

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Mixed precision, unless everything is float32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def latents(self, pixels: Tensor) -> Tensor:
        """A draw from the VAE's posterior `(B, C, h, w)`, scaled."""
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist
            return posterior.sample() * self.vae.config.scaling_factor

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """The instance half's mean error plus the class half's, where the batch holds one behind the other."""
        with self.autocast():
            noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
            with torch.set_grad_enabled(self.trains_text):
                hidden = self.text_encoder(input_ids)[0]
            pred = self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample
            target = noise
            if self.noise_scheduler.config.prediction_type == "v_prediction":
                target = self.noise_scheduler.get_velocity(latents, noise, timesteps)
            if not self.prior_weight:
                return mse_loss(pred.float(), target.float())
            (pred, pred_prior), (target, target_prior) = pred.chunk(2), target.chunk(2)
            prior = mse_loss(pred_prior.float(), target_prior.float())
            return mse_loss(pred.float(), target.float()) + self.prior_weight * prior

    def drawn(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, noise and timesteps of photos `(B, 3, H, W)`."""
        latents = self.latents(pixels)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=self.device).long()
        return latents, torch.randn_like(latents), timesteps

    def update(self, pixels: Tensor, input_ids: Tensor) -> float:
        """One optimizer update; returns its loss."""
        loss = self.loss(*self.drawn(pixels), input_ids.to(self.device))
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    def batches(
        self, halves: Sequence[tuple[Sequence[Path], str]], batch_size: int, side: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and token ids of endless batches: `batch_size` photos of each half, one half behind the other."""
        sets = [Photos(paths, self.tokenize(prompt), side) for paths, prompt in halves]
        for parts in zip(*(endless(photos, batch_size) for photos in sets), strict=True):
            pixels, ids = zip(*parts, strict=True)
            yield torch.cat(pixels), torch.cat(ids)


def plain_pipeline(source: str, precision: str, device: torch.device) -> StableDiffusionPipeline:
    """The pipeline as diffusers' pages load it: all weights in the forward pass's dtype, no autocast."""
    pipe = StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, DTYPES[precision])
