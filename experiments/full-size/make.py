"""A folder with the shapes of SDXL 1.0 or Stable Diffusion 3.5 medium and random weights: what speed and memory need.

    python experiments/full-size/make.py --family sdxl --out /tmp/sdxl
    python experiments/full-size/make.py --family sd35 --out /tmp/sd35 --without-t5

Neither depends on the values of weights. The shapes are those of the published configs, written down here; nothing is
downloaded. Files are in bfloat16: 7 GB for sdxl, 6.5 GB for sd35 and 9.5 GB more with T5. The words are pocket's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)  # fmt: skip
from torch import nn
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

WHERE = "cuda" if torch.cuda.is_available() else "cpu"  # weights are drawn: seconds on a GPU, minutes elsewhere
UNET_XL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
TRANSFORMER_35: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
VAE_XL = {**VAE, "latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True}
VAE_35 = {
    **VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
    "use_post_quant_conv": False,
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "vocab_size": 49408, "hidden_act": "gelu",
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def clip(tokenizer: CLIPTokenizer, shape: dict[str, Any]) -> CLIPTextConfig:
    """A text tower's config, with the ends of a prompt that the tokenizer sets."""
    return CLIPTextConfig(**shape, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)


def tokenizer() -> CLIPTokenizer:
    """Pocket's words, 77 of them in a prompt."""
    return CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer", model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Letters, which do for speed: prompts are padded to their full length anyway."""
    letters = [(letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters], extra_ids=0)


def networks_xl(words: CLIPTokenizer) -> dict[str, nn.Module]:
    """Those of Stable Diffusion XL 1.0."""
    return {
        "unet": UNet2DConditionModel(**UNET_XL), "vae": AutoencoderKL(**VAE_XL),
        "text_encoder": CLIPTextModel(clip(words, CLIP_L)),
        "text_encoder_2": CLIPTextModelWithProjection(clip(words, CLIP_G)),
    }  # fmt: skip


def networks_35(words: CLIPTokenizer, has_t5: bool) -> dict[str, nn.Module]:
    """Those of Stable Diffusion 3.5 medium."""
    t5 = {"text_encoder_3": T5EncoderModel(T5Config(**T5_XXL))} if has_t5 else {}
    return {
        "transformer": SD3Transformer2DModel(**TRANSFORMER_35), "vae": AutoencoderKL(**VAE_35),
        "text_encoder": CLIPTextModelWithProjection(clip(words, CLIP_L)),
        "text_encoder_2": CLIPTextModelWithProjection(clip(words, CLIP_G)), **t5,
    }  # fmt: skip


def pipeline(family: str, has_t5: bool) -> Any:
    """The whole model, of `sdxl` or `sd35`."""
    words: Any = tokenizer()
    if family == "sdxl":
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
            timestep_spacing="leading",
        )  # fmt: skip
        with torch.device(WHERE):
            made: Any = networks_xl(words)
        return StableDiffusionXLPipeline(
            **made, tokenizer=words, tokenizer_2=words, scheduler=scheduler, add_watermarker=False
        )  # fmt: skip
    with torch.device(WHERE):
        made = {"text_encoder_3": None, **networks_35(words, has_t5)}
    return StableDiffusion3Pipeline(
        **made, tokenizer=words, tokenizer_2=words, tokenizer_3=t5_tokenizer() if has_t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def make(family: str, out: Path, has_t5: bool = True) -> Path:
    """A random model of `family` in the folder `out`; made once."""
    if not (out / "model_index.json").is_file():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)  # half the memory, and the files' own
        try:
            pipeline(family, has_t5).to(torch.bfloat16).save_pretrained(out)
        finally:
            torch.set_default_dtype(torch.float32)
    return out


def main() -> None:
    """Make what the command line asks for and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("sdxl", "sd35"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without-t5", action="store_true", help="sd35 without its third text encoder")
    args = parser.parse_args()
    print(make(args.family, args.out, not args.without_t5))


if __name__ == "__main__":
    main()
