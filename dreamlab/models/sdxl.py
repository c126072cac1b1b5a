"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952).

A U-Net conditioned on the hidden states before the last layer of two text encoders side by side, on the projected end
of the second, and on how each picture was cut ("micro-conditioning"): its size before, the crop's corner, its size
after. Drawing says what the pipeline says by default, a picture of the asked size that nothing was cut from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dreamlab.diffusion import NoiseSchedule, diffusion_schedule
from dreamlab.models import PLAIN, Conditioning, Options, parts


@dataclass
class StableDiffusionXL:
    """The seven components of an SDXL, as loaded; implements `Family`."""

    family: ClassVar[str] = "sdxl"
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: Any
    options: Options = PLAIN
    own_vae: AutoencoderKL | None = None  # the one that encodes, where it isn't `vae`
    has_zero_negative: bool = True  # no negative prompt is a conditioning of zeros, as it was trained
    fingerprint: str = ""

    @classmethod
    def load(
        cls, source: str, revision: str | None = None, variant: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "StableDiffusionXL":  # fmt: skip
        """Load from a diffusers folder or hub id; `vae` replaces the VAE everywhere."""
        told = parts.told_by(StableDiffusionXLPipeline, source, revision)
        scheduler = parts.load_scheduler(source, told, revision)
        drawing, own = parts.load_vaes(source, revision, variant, vae, options.encode_with_own_vae)
        return cls(
            unet=parts.load_part(UNet2DConditionModel, source, "unet", revision, variant), vae=drawing,
            text_encoder=parts.load_part(CLIPTextModel, source, "text_encoder", revision, variant),
            text_encoder_2=parts.load_part(CLIPTextModelWithProjection, source, "text_encoder_2", revision, variant),
            tokenizer=parts.load_part(CLIPTokenizer, source, "tokenizer", revision),
            tokenizer_2=parts.load_part(CLIPTokenizer, source, "tokenizer_2", revision),
            scheduler=scheduler, options=options, own_vae=own,
            has_zero_negative=bool(told.get("force_zeros_for_empty_prompt", True)),
        )  # fmt: skip

    @classmethod
    def load_file(
        cls, file: str, config: str | None = None, vae: str | None = None, options: Options = PLAIN
    ) -> "StableDiffusionXL":
        """Load from a single .safetensors or .ckpt file; pickles with anything but tensors in them are refused."""
        pipe = parts.open_file(StableDiffusionXLPipeline, file, config, "Stable Diffusion XL", add_watermarker=False)
        drawing, own = parts.vaes_of(pipe, vae, options.encode_with_own_vae)
        return cls(
            pipe.unet, drawing, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, pipe.tokenizer_2,
            pipe.scheduler, options, own, bool(pipe.config.force_zeros_for_empty_prompt),
        )  # fmt: skip

    def __post_init__(self) -> None:
        if self.options.zero_terminal_snr:
            self.scheduler = parts.with_zero_terminal_snr(self.scheduler)
        for encoder in (self.text_encoder, self.text_encoder_2):
            parts.check_clip_skip(self.options.clip_skip, encoder, unread=1)
        parts.keep_float32(self.vae, self.own_vae)
        own = DDPMScheduler.from_config(self.scheduler.config)
        self.schedule: NoiseSchedule = diffusion_schedule(own.alphas_cumprod, own.config.prediction_type)

    def parts(self) -> dict[str, nn.Module]:
        """U-Net, VAE and both text encoders."""
        named = ("unet", "vae", "text_encoder", "text_encoder_2")
        return {name: getattr(self, name) for name in named}

    def encoders(self) -> dict[str, nn.Module]:
        """The VAE that encodes photos."""
        return {"vae": self.own_vae or self.vae}

    def tokenizers(self) -> dict[str, Any]:
        """Both of CLIP."""
        return {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, 2 * 77)`: the second encoder's, which pads with another token, after the first's."""
        return torch.cat([parts.padded_ids(one, prompts) for one in (self.tokenizer, self.tokenizer_2)], dim=1)

    def encode_text(self, input_ids: Tensor) -> Conditioning:
        """`hidden` `(B, 77, d1 + d2)` and `pooled` `(B, d2)`."""
        first, second = input_ids.chunk(2, dim=1)
        skipped = self.options.clip_skip
        hidden, _ = parts.penultimate(self.text_encoder, first, skipped)
        hidden_2, pooled = parts.penultimate(self.text_encoder_2, second, skipped)
        return {"hidden": torch.cat([hidden, hidden_2], dim=-1), "pooled": pooled}

    def encode_frozen_text(self, input_ids: Tensor) -> Conditioning:
        """The same, by encoders that rest on the CPU before and after."""
        return parts.read_and_rest(self.encode_text, [self.text_encoder, self.text_encoder_2], input_ids)

    def prompt_words(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The pipeline's words for them."""
        return parts.pooled_prompt_words(prompts, negative)

    def latent_factor(self) -> int:
        """The VAE's f."""
        return parts.latent_factor(self.vae)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the posterior, times the VAE's scaling factor, float32."""
        return parts.latent_moments(self.own_vae or self.vae, pixel_values)

    def default_resolution(self) -> int:
        """The side of the square images that the U-Net was trained on, in pixels."""
        return int(self.unet.config.sample_size * self.latent_factor())

    def predict(self, noisy_latents: Tensor, told: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction `(B, C, h, w)`; without `sizes`, of pictures that nothing was cut from."""
        sizes = conditioning.get("sizes")
        if sizes is None:
            height, width = (side * self.latent_factor() for side in noisy_latents.shape[-2:])
            whole = torch.tensor([height, width, 0, 0, height, width], device=noisy_latents.device)
            sizes = whole.expand(len(noisy_latents), -1)
        added = {"text_embeds": conditioning["pooled"], "time_ids": sizes.float()}
        hidden = conditioning["hidden"]
        return self.unet(noisy_latents, told, encoder_hidden_states=hidden, added_cond_kwargs=added).sample

    def pipeline(self, scheduler: Any | None = None) -> StableDiffusionXLPipeline:
        """The diffusers pipeline over these networks."""
        pipe = StableDiffusionXLPipeline(
            vae=self.vae, text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2, unet=self.unet,
            tokenizer=self.tokenizer, tokenizer_2=self.tokenizer_2, scheduler=scheduler or self.scheduler,
            force_zeros_for_empty_prompt=self.has_zero_negative, add_watermarker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe
