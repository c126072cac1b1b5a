"""The key list of the published Stable Diffusion checkpoints, written down from the original architecture alone.

Nothing here reads the project's own names: the lists follow the original program's modules (openaimodel.UNetModel,
autoencoder.AutoencoderKL, CLIP's and OpenCLIP's text towers, and the buffers of its DDPM), so they can hold ours to it.
"""

Shapes = dict[str, tuple[int, ...]]


def pair(name: str, *weight: int) -> Shapes:
    """A layer with a weight of that shape and a bias of its first dimension."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def res_block(name: str, before: int, after: int) -> Shapes:
    keys = {**pair(f"{name}.in_layers.0", before), **pair(f"{name}.in_layers.2", after, before, 3, 3)}
    keys |= {**pair(f"{name}.emb_layers.1", after, 1280), **pair(f"{name}.out_layers.0", after)}
    keys |= pair(f"{name}.out_layers.3", after, after, 3, 3)
    return keys | (pair(f"{name}.skip_connection", after, before, 1, 1) if before != after else {})


def transformer(name: str, width: int, context: int, is_linear: bool) -> Shapes:
    ends = (width, width) if is_linear else (width, width, 1, 1)
    keys = {**pair(f"{name}.norm", width), **pair(f"{name}.proj_in", *ends), **pair(f"{name}.proj_out", *ends)}
    block = f"{name}.transformer_blocks.0"
    for attention, source in (("attn1", width), ("attn2", context)):
        keys |= {f"{block}.{attention}.to_q.weight": (width, width)}
        keys |= {f"{block}.{attention}.to_{part}.weight": (width, source) for part in "kv"}
        keys |= pair(f"{block}.{attention}.to_out.0", width, width)
    keys |= pair(f"{block}.ff.net.0.proj", 8 * width, width) | pair(f"{block}.ff.net.2", width, 4 * width)
    for norm in ("norm1", "norm2", "norm3"):
        keys |= pair(f"{block}.{norm}", width)
    return keys


def unet(context: int, is_linear: bool) -> Shapes:
    widths, attends = (320, 640, 1280, 1280), (True, True, True, False)
    keys = {**pair("time_embed.0", 1280, 320), **pair("time_embed.2", 1280, 1280)}
    keys |= pair("input_blocks.0.0", 320, 4, 3, 3)
    channels, place, skips = 320, 1, [320]
    for level, width in enumerate(widths):
        for _ in range(2):
            keys |= res_block(f"input_blocks.{place}.0", channels, width)
            keys |= transformer(f"input_blocks.{place}.1", width, context, is_linear) if attends[level] else {}
            channels, place = width, place + 1
            skips.append(width)
        if level < 3:
            keys |= pair(f"input_blocks.{place}.0.op", width, width, 3, 3)
            place += 1
            skips.append(width)
    keys |= res_block("middle_block.0", 1280, 1280) | transformer("middle_block.1", 1280, context, is_linear)
    keys |= res_block("middle_block.2", 1280, 1280)
    place = 0
    for level in (3, 2, 1, 0):
        width = widths[level]
        for layer in range(3):
            keys |= res_block(f"output_blocks.{place}.0", channels + skips.pop(), width)
            keys |= transformer(f"output_blocks.{place}.1", width, context, is_linear) if attends[level] else {}
            if level and layer == 2:
                keys |= pair(f"output_blocks.{place}.{1 + attends[level]}.conv", width, width, 3, 3)
            channels, place = width, place + 1
    return {**keys, **pair("out.0", 320), **pair("out.2", 4, 320, 3, 3)}


def vae_block(name: str, before: int, after: int) -> Shapes:
    keys = {**pair(f"{name}.norm1", before), **pair(f"{name}.conv1", after, before, 3, 3)}
    keys |= {**pair(f"{name}.norm2", after), **pair(f"{name}.conv2", after, after, 3, 3)}
    return keys | (pair(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {})


def vae() -> Shapes:
    widths = (128, 256, 512, 512)
    keys = pair("encoder.conv_in", 128, 3, 3, 3) | pair("encoder.conv_out", 8, 512, 3, 3)
    keys |= pair("decoder.conv_in", 512, 4, 3, 3) | pair("decoder.conv_out", 3, 128, 3, 3)
    keys |= pair("quant_conv", 8, 8, 1, 1) | pair("post_quant_conv", 4, 4, 1, 1)
    for half, last in (("encoder", 512), ("decoder", 128)):
        keys |= vae_block(f"{half}.mid.block_1", 512, 512) | vae_block(f"{half}.mid.block_2", 512, 512)
        keys |= pair(f"{half}.mid.attn_1.norm", 512) | pair(f"{half}.norm_out", last)
        for part in ("q", "k", "v", "proj_out"):
            keys |= pair(f"{half}.mid.attn_1.{part}", 512, 512, 1, 1)
    channels = 128
    for level, width in enumerate(widths):
        for block in range(2):
            keys |= vae_block(f"encoder.down.{level}.block.{block}", channels, width)
            channels = width
        keys |= pair(f"encoder.down.{level}.downsample.conv", width, width, 3, 3) if level < 3 else {}
    for level in (3, 2, 1, 0):
        for block in range(3):
            keys |= vae_block(f"decoder.up.{level}.block.{block}", channels, widths[level])
            channels = widths[level]
        keys |= pair(f"decoder.up.{level}.upsample.conv", widths[level], widths[level], 3, 3) if level else {}
    return keys


def clip() -> Shapes:
    """CLIP ViT-L/14's text tower as transformers 4 named it."""
    room = "transformer.text_model"
    keys: Shapes = {
        f"{room}.embeddings.position_ids": (1, 77),
        f"{room}.embeddings.token_embedding.weight": (49408, 768),
    }
    keys |= {f"{room}.embeddings.position_embedding.weight": (77, 768), **pair(f"{room}.final_layer_norm", 768)}
    for layer in range(12):
        name = f"{room}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            keys |= pair(f"{name}.self_attn.{part}", 768, 768)
        keys |= pair(f"{name}.mlp.fc1", 3072, 768) | pair(f"{name}.mlp.fc2", 768, 3072)
        keys |= pair(f"{name}.layer_norm1", 768) | pair(f"{name}.layer_norm2", 768)
    return keys


def open_clip(width: int = 1024, layers: int = 24) -> Shapes:
    """OpenCLIP's text towers: ViT-H/14's, or of 1280 and 32 ViT-bigG/14's."""
    keys: Shapes = {"model.token_embedding.weight": (49408, width), "model.positional_embedding": (77, width)}
    keys |= {"model.text_projection": (width, width), "model.logit_scale": (), **pair("model.ln_final", width)}
    for layer in range(layers):
        name = f"model.transformer.resblocks.{layer}"
        keys |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        keys |= pair(f"{name}.attn.out_proj", width, width)
        keys |= pair(f"{name}.mlp.c_fc", 4 * width, width) | pair(f"{name}.mlp.c_proj", width, 4 * width)
        keys |= pair(f"{name}.ln_1", width) | pair(f"{name}.ln_2", width)
    return keys


BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


def published(version: int) -> Shapes:
    """Every key of v1-5-pruned-emaonly and v2-1_768-ema-pruned with its shape; two EMA leftovers are in both."""
    rooms = {
        "model.diffusion_model": unet(1024 if version == 2 else 768, version == 2),
        "first_stage_model": vae(),
        "cond_stage_model": open_clip() if version == 2 else clip(),
    }
    keys = {f"{room}.{name}": shape for room, names in rooms.items() for name, shape in names.items()}
    return {**keys, **dict.fromkeys(BUFFERS, (1000,)), "model_ema.decay": (), "model_ema.num_updates": ()}


def transformer_xl(name: str, width: int, depth: int) -> Shapes:
    """SDXL's: linear ends, several blocks."""
    one = transformer(name, width, 2048, is_linear=True)
    first = f"{name}.transformer_blocks.0."
    return {
        key.replace(first, f"{name}.transformer_blocks.{block}."): shape
        for key, shape in one.items() for block in (range(depth) if key.startswith(first) else (0,))
    }  # fmt: skip


def unet_xl() -> Shapes:
    widths, depths = (320, 640, 1280), (0, 2, 10)
    keys = {**pair("time_embed.0", 1280, 320), **pair("time_embed.2", 1280, 1280)}
    keys |= {**pair("label_emb.0.0", 1280, 2816), **pair("label_emb.0.2", 1280, 1280)}
    keys |= pair("input_blocks.0.0", 320, 4, 3, 3)
    channels, place, skips = 320, 1, [320]
    for level, width in enumerate(widths):
        for _ in range(2):
            keys |= res_block(f"input_blocks.{place}.0", channels, width)
            keys |= transformer_xl(f"input_blocks.{place}.1", width, depths[level]) if depths[level] else {}
            channels, place = width, place + 1
            skips.append(width)
        if level < 2:
            keys |= pair(f"input_blocks.{place}.0.op", width, width, 3, 3)
            place += 1
            skips.append(width)
    keys |= res_block("middle_block.0", 1280, 1280) | transformer_xl("middle_block.1", 1280, 10)
    keys |= res_block("middle_block.2", 1280, 1280)
    place = 0
    for level in (2, 1, 0):
        width, depth = widths[level], depths[level]
        for layer in range(3):
            keys |= res_block(f"output_blocks.{place}.0", channels + skips.pop(), width)
            keys |= transformer_xl(f"output_blocks.{place}.1", width, depth) if depth else {}
            if level and layer == 2:
                keys |= pair(f"output_blocks.{place}.2.conv", width, width, 3, 3)
            channels, place = width, place + 1
    return {**keys, **pair("out.0", 320), **pair("out.2", 4, 320, 3, 3)}


def published_xl() -> Shapes:
    """Every key of sd_xl_base_1.0 with its shape: no noise schedule, no leftovers."""
    rooms = {
        "model.diffusion_model": unet_xl(), "first_stage_model": vae(), "conditioner.embedders.0": clip(),
        "conditioner.embedders.1": open_clip(1280, 32),
    }  # fmt: skip
    return {f"{room}.{name}": shape for room, names in rooms.items() for name, shape in names.items()}
