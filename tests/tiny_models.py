"""Random models with the shapes of Stable Diffusion 1, 2, XL, 3 and FLUX.1, narrow enough to train on a CPU in a test.

Version 1 predicts epsilon and reads CLIP (quick GELU, convolutions around its attention); version 2 predicts v and
reads OpenCLIP (GELU, linear layers around its attention, one head per `attention_head_dim` channels).
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)  # fmt: skip
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)  # fmt: skip

from dreamlab.models import BUNDLED

WIDTH = {1: 32, 2: 64}  # of the text encoder


def unet(version: int, **changes: Any) -> UNet2DConditionModel:
    """Four levels with two layers each, as the real ones, 32 channels wide.

    Few norm groups: 64 px are one latent on the last level, and a group of two numbers would become its signs.
    """
    shape: dict[str, Any] = {
        "sample_size": 8, "norm_num_groups": 4, "block_out_channels": (32, 32, 64, 64),
        "cross_attention_dim": WIDTH[version], "attention_head_dim": [1, 1, 2, 2] if version == 2 else 4,
        "use_linear_projection": version == 2,
    }  # fmt: skip
    return UNet2DConditionModel(**{**shape, **changes})


def vae(**changes: Any) -> AutoencoderKL:
    """Four resolutions with two layers each, f = 8, 4 latent channels."""
    shape: dict[str, Any] = {
        "block_out_channels": (32, 32, 32, 32), "layers_per_block": 2, "latent_channels": 4, "sample_size": 64,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    return AutoencoderKL(**{**shape, **changes})


def text_encoder(version: int, **changes: Any) -> CLIPTextModel:
    """CLIP's text tower; version 2 has OpenCLIP's activation."""
    shape: dict[str, Any] = {
        "hidden_size": WIDTH[version], "intermediate_size": 2 * WIDTH[version], "num_attention_heads": 2,
        "num_hidden_layers": 3, "hidden_act": "gelu" if version == 2 else "quick_gelu",
    }  # fmt: skip
    return CLIPTextModel(CLIPTextConfig(**{**shape, **changes}))


def scheduler(version: int) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction" if version == 2 else "epsilon",
    )  # fmt: skip


def save_tiny(version: int, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A diffusers folder of a tiny random model; the same one at every call."""
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(version)
        pipe = StableDiffusionPipeline(
            unet=unet(version), vae=vae(), scheduler=scheduler(version), tokenizer=tokenizer,
            text_encoder=text_encoder(
                version, vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length, **ids
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipe.to(dtype).save_pretrained(folder)
    return folder


def tokenizer_of_77() -> CLIPTokenizer:
    """Pocket's words, as many of them in a prompt as CLIP reads."""
    return CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer", model_max_length=77)


def clip(tokenizer: CLIPTokenizer, layers: int, width: int = 32, **changes: Any) -> CLIPTextConfig:
    """A text tower of a tokenizer's words; diffusers tells SDXL's two apart by their widths."""
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": layers,
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0, "projection_dim": width,
    }  # fmt: skip
    return CLIPTextConfig(**{**shape, **changes})


def second_tokenizer() -> CLIPTokenizer:
    """The same, padded with another token, as the second ones of SDXL and Stable Diffusion 3 are."""
    tokenizer = tokenizer_of_77()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def unet_xl() -> UNet2DConditionModel:
    """SDXL's: three levels, none of the text on the first, two transformer blocks deep on the last."""
    return UNet2DConditionModel(
        sample_size=8, norm_num_groups=4, block_out_channels=(32, 32, 64), attention_head_dim=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), cross_attention_dim=32 + 64, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 64,
    )  # fmt: skip


def save_tiny_xl(folder: Path, layers: int = 2) -> Path:
    """A diffusers folder of a tiny random SDXL; `layers` of its second text encoder."""
    one, two = tokenizer_of_77(), second_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipe = StableDiffusionXLPipeline(
            unet=unet_xl(), vae=vae(), tokenizer=one, tokenizer_2=two, text_encoder=CLIPTextModel(clip(one, 3)),
            text_encoder_2=CLIPTextModelWithProjection(clip(two, layers, 64, hidden_act="gelu")),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5TokenizerFast:
    """Letters and spaces."""
    letters = [(letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters], extra_ids=0)


def t5_encoder(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """A T5 of one layer."""
    return T5EncoderModel(T5Config(
        d_model=128, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=len(tokenizer),
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip


def save_tiny_flux(folder: Path) -> Path:
    """A diffusers folder of a tiny random FLUX.1 dev: a block of two streams and one of a single one."""
    one, two = tokenizer_of_77(), t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        pipe = FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=128, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
            ),
            vae=vae(latent_channels=16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False,
                    use_post_quant_conv=False, force_upcast=True),
            text_encoder=CLIPTextModel(clip(one, 2)), tokenizer=one,
            text_encoder_2=t5_encoder(two), tokenizer_2=two,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
            ),
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def save_tiny_3(folder: Path, has_t5: bool = True) -> Path:
    """A diffusers folder of a tiny random Stable Diffusion 3.5, the first of its two blocks with dual attention."""
    one, two, three = tokenizer_of_77(), second_tokenizer(), t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=128, caption_projection_dim=32,
                pooled_projection_dim=32 + 64, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
            ),
            vae=vae(latent_channels=16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False,
                    use_post_quant_conv=False),
            text_encoder=CLIPTextModelWithProjection(clip(one, 2)), tokenizer=one,
            text_encoder_2=CLIPTextModelWithProjection(clip(two, 2, 64, hidden_act="gelu")), tokenizer_2=two,
            text_encoder_3=t5_encoder(three) if has_t5 else None, tokenizer_3=three if has_t5 else None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder
