"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206): flow matching with a transformer.

The transformer attends to picture and text at once. The text is the hidden states before the last layer of two CLIP
encoders side by side, and T5's after them in the sequence; the projected ends of both CLIPs are told beside the
timestep. T5 may be left out: zeros stand for what it would say, as in diffusers. Noise levels are those of the model's
own scheduler, shifted as its config says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from dreamlab.diffusion import NoiseSchedule, flow_schedule
from dreamlab.models import PLAIN, Conditioning, Options, parts

T5_TOKENS = 256  # the pipeline's max_sequence_length


@dataclass
class StableDiffusion3:
    """The components of a Stable Diffusion 3, as loaded; implements `Family`."""

    family: ClassVar[str] = "stable_diffusion_3"
    transformer: SD3Transformer2DModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: FlowMatchEulerDiscreteScheduler
    text_encoder_3: T5EncoderModel | None = None
    tokenizer_3: T5TokenizerFast | None = None
    options: Options = PLAIN
    own_vae: AutoencoderKL | None = None  # the one that encodes, where it isn't `vae`
    fingerprint: str = ""

    @classmethod
    def load(
        cls, source: str, revision: str | None = None, variant: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "StableDiffusion3":  # fmt: skip
        """Load from a diffusers folder or hub id; `vae` replaces the VAE everywhere."""
        told = parts.told_by(StableDiffusion3Pipeline, source, revision)
        t5: dict[str, Any] = {}
        if (told.get("text_encoder_3") or [None])[-1] and "text_encoder_3" not in options.without:
            t5["text_encoder_3"] = parts.load_part(T5EncoderModel, source, "text_encoder_3", revision, variant)
            t5["tokenizer_3"] = parts.load_part(T5TokenizerFast, source, "tokenizer_3", revision)
        drawing, own = parts.load_vaes(source, revision, variant, vae, options.encode_with_own_vae)
        return cls(
            transformer=parts.load_part(SD3Transformer2DModel, source, "transformer", revision, variant), vae=drawing,
            text_encoder=parts.load_part(CLIPTextModelWithProjection, source, "text_encoder", revision, variant),
            text_encoder_2=parts.load_part(CLIPTextModelWithProjection, source, "text_encoder_2", revision, variant),
            tokenizer=parts.load_part(CLIPTokenizer, source, "tokenizer", revision),
            tokenizer_2=parts.load_part(CLIPTokenizer, source, "tokenizer_2", revision),
            scheduler=parts.load_part(FlowMatchEulerDiscreteScheduler, source, "scheduler", revision),
            options=options, own_vae=own, **t5,
        )  # fmt: skip

    @classmethod
    def load_file(
        cls, file: str, config: str | None = None, vae: str | None = None, options: Options = PLAIN
    ) -> "StableDiffusion3":
        """Load from a single file that holds the CLIP encoders, too."""
        left_out: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
        left_out = left_out if "text_encoder_3" in options.without else {}
        pipe = parts.open_file(StableDiffusion3Pipeline, file, config, "Stable Diffusion 3", **left_out)
        drawing, own = parts.vaes_of(pipe, vae, options.encode_with_own_vae)
        return cls(
            pipe.transformer, drawing, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, pipe.tokenizer_2,
            pipe.scheduler, pipe.text_encoder_3, pipe.tokenizer_3, options, own,
        )  # fmt: skip

    def __post_init__(self) -> None:
        for encoder in (self.text_encoder, self.text_encoder_2):
            parts.check_clip_skip(self.options.clip_skip, encoder, unread=1)
        if self.text_encoder_3 is not None:  # it overflows in fp16
            parts.stay_float32(self.text_encoder_3, "forward")
        fresh = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)  # drawing changes a scheduler's
        self.schedule: NoiseSchedule = flow_schedule(fresh.sigmas.flip(0))

    def parts(self) -> dict[str, nn.Module]:
        """Transformer, VAE and the text encoders that are there."""
        named = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
        return {name: getattr(self, name) for name in named if getattr(self, name) is not None}

    def encoders(self) -> dict[str, nn.Module]:
        """The VAE that encodes photos."""
        return {"vae": self.own_vae or self.vae}

    def tokenizers(self) -> dict[str, Any]:
        """Those of both CLIPs and of T5."""
        suffixes = {"text_encoder": "", "text_encoder_2": "_2", "text_encoder_3": "_3"}
        return {part: getattr(self, f"tokenizer{suffix}") for part, suffix in suffixes.items() if part in self.parts()}

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, 77 + 77 + 256)` of both CLIPs and T5, or without T5 `(B, 77 + 77)`."""
        ids = [parts.padded_ids(one, prompts) for one in (self.tokenizer, self.tokenizer_2)]
        if self.tokenizer_3 is not None:
            ids.append(parts.padded_ids(self.tokenizer_3, prompts, T5_TOKENS))
        return torch.cat(ids, dim=1)

    def encode_text(self, input_ids: Tensor) -> Conditioning:
        """`hidden` `(B, 77 + 256, D)`, CLIP's part of it padded with zeros, and `pooled` `(B, d1 + d2)`."""
        length, skipped = self.tokenizer.model_max_length, self.options.clip_skip
        hidden, pooled = parts.penultimate(self.text_encoder, input_ids[:, :length], skipped)
        hidden_2, pooled_2 = parts.penultimate(self.text_encoder_2, input_ids[:, length : 2 * length], skipped)
        of_clip, width = torch.cat([hidden, hidden_2], dim=-1), self.transformer.config.joint_attention_dim
        if self.text_encoder_3 is None:
            of_t5 = of_clip.new_zeros(len(input_ids), T5_TOKENS, width)
        else:
            of_t5 = self.text_encoder_3(input_ids[:, 2 * length :])[0]
        whole = torch.cat([pad(of_clip, (0, width - of_clip.shape[-1])), of_t5], dim=1)
        return {"hidden": whole, "pooled": torch.cat([pooled, pooled_2], dim=-1)}

    def encode_frozen_text(self, input_ids: Tensor) -> Conditioning:
        """The same, by encoders that rest on the CPU before and after."""
        encoders = parts.text_encoders(self.parts())
        return parts.read_and_rest(self.encode_text, [*encoders.values()], input_ids)

    def prompt_words(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The pipeline's words for them."""
        return parts.pooled_prompt_words(prompts, negative)

    def latent_factor(self) -> int:
        """The VAE's f."""
        return parts.latent_factor(self.vae)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the posterior, shifted and scaled, float32."""
        return parts.latent_moments(self.own_vae or self.vae, pixel_values)

    def default_resolution(self) -> int:
        """The side of the square images that the transformer was trained on, in pixels."""
        return int(self.transformer.config.sample_size * self.latent_factor())

    def predict(self, noisy_latents: Tensor, told: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's velocity `(B, C, h, w)`."""
        return self.transformer(
            noisy_latents, timestep=told, encoder_hidden_states=conditioning["hidden"],
            pooled_projections=conditioning["pooled"],
        ).sample  # fmt: skip

    def pipeline(self, scheduler: Any | None = None) -> StableDiffusion3Pipeline:
        """The diffusers pipeline over these networks."""
        pipe = StableDiffusion3Pipeline(
            transformer=self.transformer, vae=self.vae, scheduler=scheduler or self.scheduler,
            text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2, text_encoder_3=self.text_encoder_3,
            tokenizer=self.tokenizer, tokenizer_2=self.tokenizer_2, tokenizer_3=self.tokenizer_3,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe
