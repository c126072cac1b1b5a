"""Stable Diffusion 1.x and 2.x, and pocket, their miniature (Rombach et al. 2022, arXiv 2112.10752).

A U-Net denoises latents of a KL autoencoder, conditioned on the last hidden states of a CLIP text model. What the
U-Net predicts (epsilon or v), the noise schedule and the scaling factor are read from the model's own configs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreamlab.diffusion import NoiseSchedule, diffusion_schedule
from dreamlab.models import PLAIN, Conditioning, Options, parts


@dataclass
class StableDiffusion:
    """The five components of a Stable Diffusion, as loaded; implements `Family`."""

    family: ClassVar[str] = "stable_diffusion"
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: Any
    options: Options = PLAIN
    own_vae: AutoencoderKL | None = None  # the one that encodes, where it isn't `vae`
    fingerprint: str = ""

    @classmethod
    def load(
        cls, source: str, revision: str | None = None, variant: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "StableDiffusion":  # fmt: skip
        """Load from a diffusers folder or hub id; `vae` replaces the VAE everywhere."""
        told = parts.told_by(StableDiffusionPipeline, source, revision)
        scheduler = parts.load_scheduler(source, told, revision)
        drawing, own = parts.load_vaes(source, revision, variant, vae, options.encode_with_own_vae)
        return cls(
            unet=parts.load_part(UNet2DConditionModel, source, "unet", revision, variant), vae=drawing,
            text_encoder=parts.load_part(CLIPTextModel, source, "text_encoder", revision, variant),
            tokenizer=parts.load_part(CLIPTokenizer, source, "tokenizer", revision),
            scheduler=scheduler, options=options, own_vae=own,
        )  # fmt: skip

    @classmethod
    def load_file(
        cls, file: str, config: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "StableDiffusion":  # fmt: skip
        """Load from a single .safetensors or .ckpt file; pickles with anything but tensors in them are refused."""
        pipe = parts.open_file(
            StableDiffusionPipeline, file, config, "Stable Diffusion 1 or 2", safety_checker=None,
            feature_extractor=None,
        )  # fmt: skip
        drawing, own = parts.vaes_of(pipe, vae, options.encode_with_own_vae)
        return cls(pipe.unet, drawing, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, options, own)

    def __post_init__(self) -> None:
        if self.options.zero_terminal_snr:
            self.scheduler = parts.with_zero_terminal_snr(self.scheduler)
        parts.check_clip_skip(self.options.clip_skip, self.text_encoder)
        own = DDPMScheduler.from_config(self.scheduler.config)
        self.alphas_cumprod: Tensor = own.alphas_cumprod.float()
        self.schedule: NoiseSchedule = diffusion_schedule(self.alphas_cumprod, own.config.prediction_type)

    def parts(self) -> dict[str, nn.Module]:
        """U-Net, VAE and text encoder."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def encoders(self) -> dict[str, nn.Module]:
        """The VAE that encodes photos."""
        return {"vae": self.own_vae or self.vae}

    def tokenizers(self) -> dict[str, Any]:
        """CLIP's."""
        return {"text_encoder": self.tokenizer}

    def latent_factor(self) -> int:
        """The VAE's f."""
        return parts.latent_factor(self.vae)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, 77)`."""
        return parts.padded_ids(self.tokenizer, prompts)

    def encode_text(self, input_ids: Tensor) -> Conditioning:
        """`hidden` `(B, L, d)`: the last layer, or one before it (`clip_skip`), after the final norm."""
        skipped = self.options.clip_skip
        if not skipped:
            return {"hidden": self.text_encoder(input_ids)[0]}
        states = self.text_encoder(input_ids, output_hidden_states=True).hidden_states
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder)
        return {"hidden": encoder.final_layer_norm(states[-1 - skipped])}

    def encode_frozen_text(self, input_ids: Tensor) -> Conditioning:
        """The same, by an encoder that rests on the CPU before and after."""
        return parts.read_and_rest(self.encode_text, [self.text_encoder], input_ids)

    def prompt_words(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The pipeline's words for them."""
        return {"prompt_embeds": prompts["hidden"], "negative_prompt_embeds": negative["hidden"]}

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the posterior, times the VAE's scaling factor, float32."""
        return parts.latent_moments(self.own_vae or self.vae, pixel_values)

    def default_resolution(self) -> int:
        """The side of the square images that the U-Net was trained on, in pixels."""
        return int(self.unet.config.sample_size * self.latent_factor())

    def predict(self, noisy_latents: Tensor, told: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction `(B, C, h, w)`."""
        return self.unet(noisy_latents, told, encoder_hidden_states=conditioning["hidden"]).sample

    def pipeline(self, scheduler: Any | None = None) -> StableDiffusionPipeline:
        """The diffusers pipeline over these networks."""
        pipe = StableDiffusionPipeline(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
            scheduler=scheduler or self.scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe
