"""FLUX.1 (Black Forest Labs 2024): flow matching with a transformer of twelve billion weights.

The transformer sees four latents of a square as one token, each at its place in the picture, and T5's hidden states
before them; the end of a CLIP's prompt is told beside the timestep. `dev` is told the strength of guidance, too: it was
distilled to need no second, unconditional pass, and so there is no negative prompt. It is taught at a strength of 1, as
trainers of adapters do, and drawn with at the pipeline's 3.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from dreamlab.diffusion import NoiseSchedule, flow_schedule
from dreamlab.errors import UserError
from dreamlab.models import PLAIN, Conditioning, Options, parts

T5_TOKENS = 512  # the pipeline's max_sequence_length
TAUGHT_GUIDANCE = 1.0
SIDE_PX = 1024


@dataclass
class Flux:
    """The seven components of a FLUX.1, as loaded; implements `Family`."""

    family: ClassVar[str] = "flux"
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast
    scheduler: FlowMatchEulerDiscreteScheduler
    options: Options = PLAIN
    own_vae: AutoencoderKL | None = None  # the one that encodes, where it isn't `vae`
    fingerprint: str = ""

    @classmethod
    def load(
        cls, source: str, revision: str | None = None, variant: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "Flux":  # fmt: skip
        """Load from a diffusers folder or hub id; `vae` replaces the VAE everywhere."""
        parts.told_by(FluxPipeline, source, revision)
        drawing, own = parts.load_vaes(source, revision, variant, vae, options.encode_with_own_vae)
        return cls(
            transformer=parts.load_part(FluxTransformer2DModel, source, "transformer", revision, variant), vae=drawing,
            text_encoder=parts.load_part(CLIPTextModel, source, "text_encoder", revision, variant),
            text_encoder_2=parts.load_part(T5EncoderModel, source, "text_encoder_2", revision, variant),
            tokenizer=parts.load_part(CLIPTokenizer, source, "tokenizer", revision),
            tokenizer_2=parts.load_part(T5TokenizerFast, source, "tokenizer_2", revision),
            scheduler=parts.load_part(FlowMatchEulerDiscreteScheduler, source, "scheduler", revision),
            options=options, own_vae=own,
        )  # fmt: skip

    @classmethod
    def load_file(
        cls, file: str, config: str | None = None, vae: str | None = None, options: Options = PLAIN
    ) -> "Flux":
        """Load from a single file; what isn't in it, mostly all but the transformer, comes from `config`."""
        pipe = parts.open_file(FluxPipeline, file, config, "FLUX.1")
        drawing, own = parts.vaes_of(pipe, vae, options.encode_with_own_vae)
        return cls(
            pipe.transformer, drawing, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, pipe.tokenizer_2,
            pipe.scheduler, options, own,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if self.options.clip_skip:
            raise UserError(f"model.clip_skip={self.options.clip_skip}: FLUX.1 reads no layer of CLIP. Leave it out.")
        parts.stay_float32(self.text_encoder_2, "forward")  # it overflows in fp16
        parts.keep_float32(self.vae, self.own_vae)
        # Not shifted for a picture's size, unlike those that it is drawn with; as diffusers' own training script
        fresh = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        self.schedule: NoiseSchedule = flow_schedule(fresh.sigmas.flip(0))

    def parts(self) -> dict[str, nn.Module]:
        """Transformer, VAE, CLIP and T5."""
        named = ("transformer", "vae", "text_encoder", "text_encoder_2")
        return {name: getattr(self, name) for name in named}

    def encoders(self) -> dict[str, nn.Module]:
        """The VAE that encodes photos."""
        return {"vae": self.own_vae or self.vae}

    def tokenizers(self) -> dict[str, Any]:
        """Those of CLIP and T5."""
        return {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, 77 + 512)` of CLIP and T5."""
        ids = parts.padded_ids(self.tokenizer, prompts), parts.padded_ids(self.tokenizer_2, prompts, T5_TOKENS)
        return torch.cat(ids, dim=1)

    def encode_text(self, input_ids: Tensor) -> Conditioning:
        """T5's `hidden` `(B, 512, D)` and CLIP's `pooled` `(B, d)`."""
        length = self.tokenizer.model_max_length
        pooled = self.text_encoder(input_ids[:, :length]).pooler_output
        return {"hidden": self.text_encoder_2(input_ids[:, length:])[0], "pooled": pooled}

    def encode_frozen_text(self, input_ids: Tensor) -> Conditioning:
        """The same, by encoders that rest on the CPU before and after."""
        return parts.read_and_rest(self.encode_text, [self.text_encoder, self.text_encoder_2], input_ids)

    def prompt_words(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The pipeline's words for the first of them."""
        return {"prompt_embeds": prompts["hidden"], "pooled_prompt_embeds": prompts["pooled"]}

    def latent_factor(self) -> int:
        """The VAE's f."""
        return parts.latent_factor(self.vae)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the posterior, shifted and scaled, float32."""
        return parts.latent_moments(self.own_vae or self.vae, pixel_values)

    def default_resolution(self) -> int:
        """The side of the square images that it draws by default, in pixels."""
        return SIDE_PX

    def predict(self, noisy_latents: Tensor, told: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's velocity `(B, C, h, w)`; h and w are even."""
        height, width = (side // 2 for side in noisy_latents.shape[-2:])
        device, hidden = noisy_latents.device, conditioning["hidden"]
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        places = torch.stack([rows.repeat_interleave(width), columns.repeat(height)], dim=-1).float()
        strength = told.new_full(told.shape, TAUGHT_GUIDANCE) if self.transformer.config.guidance_embeds else None
        velocity = self.transformer(
            pixel_unshuffle(noisy_latents, 2).flatten(2).transpose(1, 2), timestep=told / 1000, guidance=strength,
            encoder_hidden_states=hidden, pooled_projections=conditioning["pooled"],
            txt_ids=places.new_zeros(hidden.shape[1], 3), img_ids=pad(places, (1, 0)),
        ).sample  # fmt: skip
        return pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (height, width)), 2)

    def pipeline(self, scheduler: Any | None = None) -> FluxPipeline:
        """The diffusers pipeline over these networks."""
        pipe = FluxPipeline(
            transformer=self.transformer, vae=self.vae, scheduler=scheduler or self.scheduler,
            text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer, tokenizer_2=self.tokenizer_2,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe
