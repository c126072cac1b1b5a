"""Key names of the original Stable Diffusion checkpoints, 1, 2 and XL: the one-file layout of A1111 and ComfyUI.

diffusers names networks by folder and block; the original checkpoint puts all of them into one flat list. The two
layouts hold the same numbers, but for three things: the VAE's attention is a 1x1 convolution there and linear here,
OpenCLIP's attention (Stable Diffusion 2 and XL) has query, key and value in one matrix, and a published file of 1 or 2
carries its noise schedule. `to_single_file` maps one way; diffusers' own `from_single_file` maps back. Called by
export.py.
"""

import re
from collections.abc import Mapping, Set

import torch
from torch import Tensor

State = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """`key` with the first module path of `names` that it starts with replaced; itself where there is none."""
    for ours, theirs in names.items():
        if key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    return key


def unet_key(key: str, layers_per_block: int, attends: Set[int]) -> str:
    """The original name of a U-Net weight; `attends` holds the up blocks that attend to the text."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    if not found:
        renamed = _renamed(key, _UNET_ENDS)
        is_resnet = renamed.startswith(("middle_block.0.", "middle_block.2."))
        return renamed[:15] + _renamed(renamed[15:], _RESNET) if is_resnet else renamed
    way, kind, rest = found[1], found[3], found[5]
    block, layer = int(found[2]), int(found[4])
    per_block = layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{per_block * (block + 1)}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"output_blocks.{per_block * block + layers_per_block}.{1 + (block in attends)}.{rest}"
    place = per_block * block + layer
    room = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
    return f"{room}.0.{_renamed(rest, _RESNET)}" if kind == "resnets" else f"{room}.1.{rest}"


def vae_key(key: str, blocks: int) -> str:
    """The original name of a VAE weight; `blocks` is the number of resolutions."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    attention = re.match(r"(.+)\.mid_block\.attentions\.0\.(.+)", key)
    if attention:
        return f"{attention[1]}.mid.attn_1.{_renamed(attention[2], _VAE_ATTENTION)}"
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)


def convert_unet(state: State) -> State:
    """U-Net weights under their original names, without a prefix."""
    layers_per_block = len({key.split(".")[3] for key in state if key.startswith("down_blocks.0.resnets.")})
    attends = {int(key.split(".")[1]) for key in state if re.match(r"up_blocks\.\d+\.attentions", key)}
    return {unet_key(key, layers_per_block, attends): weight for key, weight in state.items()}


def convert_vae(state: State) -> State:
    """VAE weights under their original names; linear attention weights `(out, in)` become `(out, in, 1, 1)`."""
    blocks = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("decoder.up_blocks."))
    converted = {}
    for key, weight in state.items():
        is_projection = ".attentions." in key and weight.ndim == 2
        converted[vae_key(key, blocks)] = weight[:, :, None, None] if is_projection else weight
    return converted


def _bare(state: State) -> State:
    """Text-encoder weights without the `text_model.` that older transformers put before every name."""
    return {key.removeprefix("text_model."): weight for key, weight in state.items() if "position_ids" not in key}


def convert_clip(state: State) -> State:
    """Stable Diffusion 1's text encoder: CLIP as transformers names it, with its integer positions `(1, L)` int64."""
    state = _bare(state)
    length = state["embeddings.position_embedding.weight"].shape[0]
    positions = {"embeddings.position_ids": torch.arange(length)[None]}
    return {f"transformer.text_model.{key}": weight for key, weight in {**positions, **state}.items()}


def convert_open_clip(state: State, published_layers: int = 24) -> State:
    """The text encoder of Stable Diffusion 2 and XL's second: OpenCLIP's names, query, key and value in one matrix.

    diffusers drops the layers after the one that Stable Diffusion 2 reads, its projection and the temperature. A
    published file has them, and no program uses them: zeros, an identity and OpenCLIP's initial ln(1 / 0.07) stand in.
    XL reads the projection, whose matrix is the other way round there.
    """
    state = _bare(state)
    ends = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    converted = {f"model.{theirs}": state[ours] for ours, theirs in ends.items()}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    for layer in range(layers):
        before, after = f"encoder.layers.{layer}.", f"model.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            fused = [state[f"{before}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            converted[f"{after}attn.in_proj_{kind}"] = torch.cat(fused)
            for ours, theirs in _OPEN_CLIP.items():
                converted[f"{after}{theirs}.{kind}"] = state[f"{before}{ours}.{kind}"]
    last = f"model.transformer.resblocks.{layers - 1}."
    for layer in range(layers, published_layers):
        unused = {key[len(last) :]: weight for key, weight in converted.items() if key.startswith(last)}
        converted |= {f"model.transformer.resblocks.{layer}.{key}": torch.zeros_like(w) for key, w in unused.items()}
    width = state["final_layer_norm.weight"].shape[0]
    projection = state.get("text_projection.weight")
    converted["model.text_projection"] = torch.eye(width) if projection is None else projection.T
    converted["model.logit_scale"] = torch.tensor(1 / 0.07).log()
    return converted


def noise_schedule(alphas_cumprod: Tensor) -> State:
    """The buffers that the original program stores, from abar_t `(T,)` (Ho et al. 2020, eq. 4 and 7), float32."""
    abar = alphas_cumprod.double()
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    betas = 1 - abar / before
    variance = betas * (1 - before) / (1 - abar)
    buffers = {
        "betas": betas, "alphas_cumprod": abar, "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(), "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(), "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance, "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - abar),
    }  # fmt: skip
    return {name: value.float() for name, value in buffers.items()}


def to_single_file(unet: State, vae: State, text_encoder: State, alphas_cumprod: Tensor, *, open_clip: bool) -> State:
    """All weights of a Stable Diffusion 1 or 2 model under the names of the original one-file checkpoint."""
    text = convert_open_clip(text_encoder) if open_clip else convert_clip(text_encoder)
    rooms = {
        "model.diffusion_model": convert_unet(unet),
        "first_stage_model": convert_vae(vae),
        "cond_stage_model": text,
    }
    # Left over in the published files from their own training, and read by nobody
    leftovers = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(0, dtype=torch.int32)}
    named = {f"{room}.{key}": weight for room, state in rooms.items() for key, weight in state.items()}
    return {**named, **noise_schedule(alphas_cumprod), **leftovers}


def to_single_file_xl(parts: Mapping[str, State]) -> State:
    """All weights of an SDXL, by part, under the names of its original checkpoint; no noise schedule is in there."""
    rooms = {
        "model.diffusion_model": convert_unet(parts["unet"]),
        "first_stage_model": convert_vae(parts["vae"]),
        "conditioner.embedders.0": convert_clip(parts["text_encoder"]),
        "conditioner.embedders.1": convert_open_clip(parts["text_encoder_2"], published_layers=0),
    }
    return {f"{room}.{key}": weight for room, state in rooms.items() for key, weight in state.items()}
