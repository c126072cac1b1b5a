"""Stable Diffusion 1.x and 2.x, and pocket, their miniature (Rombach et al. 2022, arXiv 2112.10752).

A U-Net denoises latents of a KL autoencoder, conditioned on the last hidden states of a CLIP text model. What the
U-Net predicts (epsilon or v), the noise schedule and the scaling factor are read from the model's own configs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreamlab.diffusion import PREDICTION_TYPES
from dreamlab.errors import UserError
from dreamlab.models import PLAIN, Options

END = "</w>"  # of a token that ends a word


def _load_part(part: type, source: str, subfolder: str, revision: str | None, variant: str | None) -> Any:
    """One component of a diffusers folder, networks in float32; a missing variant falls back to the plain files."""
    options: dict[str, Any] = {"subfolder": subfolder, "revision": revision}
    if issubclass(part, nn.Module):
        key = "dtype" if part is CLIPTextModel else "torch_dtype"  # transformers and diffusers differ
        options |= {key: torch.float32, "variant": variant, "use_safetensors": None}
    try:
        return part.from_pretrained(source, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, SafetensorError) as error:
        if options.get("variant"):
            return _load_part(part, source, subfolder, revision, None)
        where = "folder" if Path(source).is_dir() else "hub model"
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"Could not load {subfolder or 'the model'} of the {where} {source!r}: {reason}") from error


def _needs_own_vae(vae: str | None, options: Options) -> bool:
    """Whether a model keeps its own VAE beside another one."""
    return bool(vae) and options.encode_with_own_vae


def _other_vae(source: str) -> AutoencoderKL:
    """A VAE of its own, from a VAE's or a whole model's folder, or a hub id."""
    part: AutoencoderKL = _load_part(
        AutoencoderKL, source, "vae" if (Path(source) / "vae").is_dir() else "", None, None
    )
    return part


@dataclass
class StableDiffusion:
    """The five components of a Stable Diffusion, as loaded; implements `Family`."""

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
        pipeline_config = StableDiffusionPipeline.load_config(source, revision=revision)
        import diffusers

        scheduler_class = getattr(diffusers, str((pipeline_config.get("scheduler") or [None])[-1]), None)
        if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
            raise UserError(f"The model_index.json of {source!r} names no scheduler: it is no Stable Diffusion model.")
        scheduler = _load_part(scheduler_class, source, "scheduler", revision, None)
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"{source!r} predicts {scheduler.config.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}."
            )
        own = _load_part(AutoencoderKL, source, "vae", revision, variant) if _needs_own_vae(vae, options) else None
        return cls(
            unet=_load_part(UNet2DConditionModel, source, "unet", revision, variant),
            vae=_other_vae(vae) if vae else _load_part(AutoencoderKL, source, "vae", revision, variant),
            text_encoder=_load_part(CLIPTextModel, source, "text_encoder", revision, variant),
            tokenizer=_load_part(CLIPTokenizer, source, "tokenizer", revision, None),
            scheduler=scheduler, options=options, own_vae=own,
        )  # fmt: skip

    @classmethod
    def load_file(
        cls, file: str, config: str | None = None, vae: str | None = None,
        options: Options = PLAIN,
    ) -> "StableDiffusion":  # fmt: skip
        """Load from a single .safetensors or .ckpt file; pickles with anything but tensors in them are refused."""
        try:
            pipe = StableDiffusionPipeline.from_single_file(
                file, config=config, torch_dtype=torch.float32, local_files_only=bool(config and Path(config).is_dir()),
                safety_checker=None, feature_extractor=None,
            )  # fmt: skip
        except Exception as error:  # diffusers, torch and safetensors each raise their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"Could not load the model file {file!r}: {reason} If it is a Stable Diffusion 1 or 2 checkpoint, name"
                " a diffusers folder or hub id of the same kind: config=... (model.config=... when training)."
            ) from error
        own = pipe.vae if _needs_own_vae(vae, options) else None
        used = _other_vae(vae) if vae else pipe.vae
        return cls(pipe.unet, used, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, options, own)

    def __post_init__(self) -> None:
        if self.options.zero_terminal_snr:
            self._rescale_schedule()
        layers = self.text_encoder.config.num_hidden_layers
        if self.options.clip_skip >= layers:
            raise UserError(f"model.clip_skip={self.options.clip_skip}: the text encoder has only {layers} layers.")
        schedule = DDPMScheduler.from_config(self.scheduler.config)
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.float()
        self.prediction_type: str = schedule.config.prediction_type

    def _rescale_schedule(self) -> None:
        """Zero terminal SNR and its trailing timesteps (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
        if self.scheduler.config.prediction_type == "epsilon":
            raise UserError(
                "objective.zero_terminal_snr needs a model that predicts v: from noise alone, epsilon says nothing of"
                " the picture. Leave it out, or use model=sd21."
            )
        self.scheduler = DDIMScheduler.from_config(  # PNDM, which many models come with, can't start from noise alone
            self.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )

    def parts(self) -> dict[str, nn.Module]:
        """U-Net, VAE and text encoder."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def encoders(self) -> dict[str, nn.Module]:
        """The VAE that encodes photos."""
        return {"vae": self.own_vae or self.vae}

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with its start and end."""
        return len(self.tokenizer(prompt).input_ids)

    def words(self) -> dict[str, int]:
        """CLIP's tokens that end a word; ids are in the order in which byte pairs were merged, the frequent first."""
        vocabulary = self.tokenizer.get_vocab()
        return {token.removesuffix(END): number for token, number in vocabulary.items() if token.endswith(END)}

    def pieces(self, word: str) -> list[tuple[str, int]]:
        """Text and id of a word's tokens, their mark of a word's end left out."""
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        texts = self.tokenizer.convert_ids_to_tokens(ids)
        return [(text.removesuffix(END), number) for text, number in zip(texts, ids, strict=True)]

    def token_embeddings(self) -> Tensor:
        """The text encoder's table `(V, d)`."""
        return self.text_encoder.get_input_embeddings().weight.detach().float().cpu()

    def latent_factor(self) -> int:
        """The VAE's f."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `(B, L)`, padded to the full length as at inference; padding shorter would train another input."""
        return self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids  # fmt: skip

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Hidden states `(B, L, d)` of the last layer, or one before it (`clip_skip`), after the final norm."""
        skipped = self.options.clip_skip
        if not skipped:
            return self.text_encoder(input_ids)[0]
        states = self.text_encoder(input_ids, output_hidden_states=True).hidden_states
        return getattr(self.text_encoder, "text_model", self.text_encoder).final_layer_norm(states[-1 - skipped])

    def encode_frozen_text(self, input_ids: Tensor) -> Tensor:
        """The same, on the ids' device, by an encoder that rests on the CPU before and after."""
        hidden = self.encode_text(input_ids.to(self.text_encoder.device)).to(input_ids.device)
        self.text_encoder.to("cpu")
        return hidden

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(B, C, h, w)` of the posterior, times the VAE's scaling factor, float32."""
        vae = self.own_vae or self.vae
        posterior = vae.encode(pixel_values).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def default_resolution(self) -> int:
        """The side of the square images that the U-Net was trained on, in pixels."""
        return int(self.unet.config.sample_size * self.latent_factor())

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The U-Net's prediction `(B, C, h, w)`."""
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=text).sample

    def pipeline(self, scheduler: Any | None = None) -> StableDiffusionPipeline:
        """The diffusers pipeline over these networks."""
        pipe = StableDiffusionPipeline(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
            scheduler=scheduler or self.scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe
