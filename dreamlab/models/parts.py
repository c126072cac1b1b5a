"""What several families are made of: components of a diffusers folder, prompts' tokens, a VAE's latents.

Functions of networks and tokenizers, for the families' files to call; a family that is made of other things needs none.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from dreamlab.diffusion import PREDICTION_TYPES
from dreamlab.errors import UserError, first_line
from dreamlab.inversion import expanded

# What a network has many of: compiled one by one, or shared out one by one
BLOCKS = (BasicTransformerBlock, JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock)


def text_encoders(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of a family's parts that read prompts."""
    return {name: network for name, network in networks.items() if name.startswith("text_encoder")}


def load_part(
    part: type, source: str, subfolder: str, revision: str | None = None, variant: str | None = None
) -> Any:  # fmt: skip
    """One component of a diffusers folder, networks in float32; a missing variant falls back to the plain files."""
    options: dict[str, Any] = {"subfolder": subfolder, "revision": revision}
    if issubclass(part, nn.Module):
        key = "dtype" if issubclass(part, PreTrainedModel) else "torch_dtype"  # transformers and diffusers differ
        options |= {key: torch.float32, "variant": variant, "use_safetensors": None}
    try:
        return part.from_pretrained(source, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, SafetensorError) as error:
        if options.get("variant"):
            return load_part(part, source, subfolder, revision, None)
        where = "folder" if Path(source).is_dir() else "hub model"
        reason = first_line(error)
        raise UserError(f"Could not load {subfolder or 'the model'} of the {where} {source!r}: {reason}") from error


def told_by(pipeline: Any, source: str, revision: str | None) -> dict[str, Any]:
    """What a folder's or hub model's model_index.json says; UserError where there is none."""
    try:
        return dict(pipeline.load_config(source, revision=revision))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"Could not load the model {source!r}: {reason}") from error


def load_scheduler(source: str, pipeline_config: Any, revision: str | None) -> Any:
    """A diffusion's own scheduler; UserError where there is none, or its prediction is of no known type."""
    scheduler_class = getattr(diffusers, str((pipeline_config.get("scheduler") or [None])[-1]), None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise UserError(f"The model_index.json of {source!r} names no scheduler: it is no model of this family.")
    scheduler = load_part(scheduler_class, source, "scheduler", revision)
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"{source!r} predicts {scheduler.config.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}."
        )
    return scheduler


def with_zero_terminal_snr(scheduler: Any) -> Any:
    """Zero terminal SNR and its trailing timesteps (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    if scheduler.config.prediction_type == "epsilon":
        raise UserError(
            "objective.zero_terminal_snr needs a model that predicts v: from noise alone, epsilon says nothing of"
            " the picture. Leave it out, or use model=sd21."
        )
    return DDIMScheduler.from_config(  # PNDM, which many models come with, can't start from noise alone
        scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def load_vaes(
    source: str, revision: str | None, variant: str | None, vae: str | None, keeps_own: bool
) -> tuple[AutoencoderKL, AutoencoderKL | None]:  # fmt: skip
    """The VAE that draws, another one where `vae` names it, and the model's own beside it where that encodes."""
    if not vae:
        return load_part(AutoencoderKL, source, "vae", revision, variant), None
    own = load_part(AutoencoderKL, source, "vae", revision, variant) if keeps_own else None
    return other_vae(vae), own


def vaes_of(pipe: Any, vae: str | None, keeps_own: bool) -> tuple[AutoencoderKL, AutoencoderKL | None]:
    """The same two of a pipeline that came from one file."""
    return (other_vae(vae), pipe.vae if keeps_own else None) if vae else (pipe.vae, None)


def other_vae(source: str) -> AutoencoderKL:
    """A VAE of its own, from a VAE's or a whole model's folder, or a hub id."""
    part: AutoencoderKL = load_part(AutoencoderKL, source, "vae" if (Path(source) / "vae").is_dir() else "")
    return part


def open_file(pipeline: Any, file: str, config: str | None, kind: str, **options: Any) -> Any:
    """A diffusers pipeline, float32, of one .safetensors or .ckpt file; UserError where it isn't of that `kind`."""
    try:
        return pipeline.from_single_file(
            file, config=config, torch_dtype=torch.float32, local_files_only=bool(config and Path(config).is_dir()),
            **options,
        )  # fmt: skip
    except Exception as error:  # diffusers, torch and safetensors each raise their own
        reason = first_line(error)
        raise UserError(
            f"Could not load the model file {file!r}: {reason} If it is a {kind} checkpoint, name a diffusers folder or"
            " hub id of the same kind: config=... (model.config=... when training)."
        ) from error


def padded_ids(tokenizer: Any, prompts: Sequence[str], length: int | None = None) -> Tensor:
    """Token ids `(B, L)`, padded to the full length as at inference; padding shorter would train another input."""
    ids: Tensor = tokenizer(
        expanded(tokenizer, prompts), padding="max_length", truncation=True,
        max_length=length or tokenizer.model_max_length, return_tensors="pt",
    ).input_ids  # fmt: skip
    return ids


def read_and_rest(
    encode: Callable[[Tensor], dict[str, Tensor]], encoders: Sequence[Any], input_ids: Tensor
) -> dict[str, Tensor]:  # fmt: skip
    """What encoders make of token ids, on the ids' device; they rest on the CPU before and after.

    Each row by itself, since several together are rounded differently: a prompt is read alike in whatever company.
    """
    for encoder in encoders:
        encoder.to(input_ids.device)
    rows = [encode(row[None]) for row in input_ids]
    for encoder in encoders:
        encoder.to("cpu")
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def penultimate(text_encoder: Any, input_ids: Tensor, clip_skip: int) -> tuple[Tensor, Tensor]:
    """Hidden states `(B, L, d)` before the last layer, `clip_skip` more left out, and the projected end `(B, d)`.

    No final norm, unlike Stable Diffusion 1 and 2; the second is a CLIPTextModelWithProjection's alone.
    """
    told = text_encoder(input_ids, output_hidden_states=True)
    return told.hidden_states[-2 - clip_skip], told[0]


def pooled_prompt_words(prompts: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Any]:
    """What pipelines that are told `hidden` and `pooled` call them."""
    return {
        "prompt_embeds": prompts["hidden"], "pooled_prompt_embeds": prompts["pooled"],
        "negative_prompt_embeds": negative["hidden"], "negative_pooled_prompt_embeds": negative["pooled"],
    }  # fmt: skip


def check_clip_skip(clip_skip: int, text_encoder: Any, unread: int = 0) -> None:
    """Raise UserError where no layer is left below those skipped and the last ones, which are `unread` anyway."""
    layers = text_encoder.config.num_hidden_layers
    if clip_skip and clip_skip + unread >= layers:
        raise UserError(f"model.clip_skip={clip_skip}: the text encoder has only {layers} layers.")


def latent_moments(vae: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(B, C, h, w)` of the posterior, shifted and scaled as the VAE's config says."""
    posterior = vae.encode(pixel_values).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor")
    mean = posterior.mean.float() - shift if shift else posterior.mean.float()
    return mean * scale, posterior.std.float() * scale


def keep_float32(*vaes: Any) -> None:
    """Let VAEs encode and decode in float32 whatever autocast says, where their config asks for that; None is none.

    SDXL's own overflows in fp16, and its pictures are black.
    """
    for vae in vaes:
        if vae is not None and vae.config.force_upcast:
            stay_float32(vae, "encode", "decode")


def stay_float32(network: Any, *methods: str) -> None:
    """Let a network compute in float32 under autocast, too: `methods` are what is called of it."""
    for name in methods:
        setattr(network, name, in_float32(getattr(network, name)))
    network.stays_float32 = True


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a float32 network that computes in float32 under autocast, too."""

    def run(values: Tensor, *others: Any, **named: Any) -> Any:
        with torch.autocast(values.device.type, enabled=False):
            return method(values.float() if values.is_floating_point() else values, *others, **named)

    return run


def latent_factor(vae: Any) -> int:
    """The VAE's f: pixels of an image's side to one of its latents'."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
