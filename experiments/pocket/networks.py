"""The four networks of pocket: Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752) with everything small.

A photo of 64x64 px becomes a latent of 8x16x16; the U-Net works at 16x16 and 8x8 with attention at both; the text
encoder reads 24 tokens. In all under 12 million weights: 24 MB in fp16.
"""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from photos import SIZE_PX
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 8
LATENT_STD = 2.0  # what the VAE emits; its config's scaling factor brings it to 1. Forget the factor and it shows
TEXT_WIDTH = 160


def autoencoder() -> AutoencoderKL:
    """(B, 3, 64, 64) in [-1, 1] <-> (B, 8, 16, 16)."""
    return AutoencoderKL(
        sample_size=SIZE_PX,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=16,
        scaling_factor=1 / LATENT_STD,
    )


def denoiser() -> UNet2DConditionModel:
    """(B, 8, 16, 16), timesteps (B,), text (B, 24, 160) -> v, (B, 8, 16, 16)."""
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 144),
        layers_per_block=(1, 2),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(4, 6),  # diffusers' name for the number of heads: 24 channels each
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token ids (B, 24) -> (B, 24, 160)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def schedule() -> DDIMScheduler:
    """Stable Diffusion's noise levels, predicting v, sampled from the very last one (arXiv 2305.08891, sec. 3.3)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Shifts and scales each latent channel to mean 0 and std `LATENT_STD` inside the VAE's own 1x1 convolutions.

    With `mean` and `std` (C,) as the channels have them now: quant_conv gives mu' = (mu - mean) a and
    log var' = log var + 2 log a, a = LATENT_STD / std; post_quant_conv undoes it on its input.
    """
    gain = LATENT_STD / std
    quant, unquant = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()  # slices write through; the whole tensors below need in-place calls
    unquant.bias.add_(unquant.weight[:, :, 0, 0] @ mean)
    unquant.weight.div_(gain[None, :, None, None])


def weight_groups(*modules: torch.nn.Module, decay: float) -> list[dict]:
    """AdamW groups: matrices and kernels decay; embeddings, norms and biases keep their scale."""
    shrinking, free = [], []
    for module in modules:
        for name, weight in module.named_parameters():
            is_kernel = weight.ndim > 1 and "embedding" not in name.replace("time_embedding", "")
            (shrinking if is_kernel else free).append(weight)
    return [{"params": shrinking, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}]
