"""The keys and shapes of a LoRA of Stable Diffusion 1 as kohya's trainer writes it, from the architecture alone.

Nothing here reads the project's own names: its network puts a module beside every linear layer and 1x1 convolution of
the U-Net's transformers and of CLIP's attention and MLP and, if asked (LoCon), beside those of residual blocks and of
the layers between resolutions. A module is named by the path of its layer with underscores for dots.
"""

Shapes = dict[str, tuple[int, ...]]
WIDTHS, CONTEXT, TIME, TEXT = (320, 640, 1280, 1280), 768, 1280, 768


def module(name: str, rank: int, out: int, before: int, kernel: tuple[int, ...] = ()) -> Shapes:
    """One layer of `before` inputs and `out` outputs; `kernel` of a convolution."""
    return {
        f"{name}.lora_down.weight": (rank, before, *kernel),
        f"{name}.lora_up.weight": (out, rank, *(1 for _ in kernel)),
        f"{name}.alpha": (),
    }


def transformer(room: str, width: int, rank: int, only_attention: bool) -> Shapes:
    keys: Shapes = {}
    block = f"{room}_transformer_blocks_0"
    for attention, source in (("attn1", width), ("attn2", CONTEXT)):
        keys |= module(f"{block}_{attention}_to_q", rank, width, width)
        for part in "kv":
            keys |= module(f"{block}_{attention}_to_{part}", rank, width, source)
        keys |= module(f"{block}_{attention}_to_out_0", rank, width, width)
    if not only_attention:
        keys |= module(f"{room}_proj_in", rank, width, width, (1, 1))
        keys |= module(f"{room}_proj_out", rank, width, width, (1, 1))
        keys |= module(f"{block}_ff_net_0_proj", rank, 8 * width, width)
        keys |= module(f"{block}_ff_net_2", rank, width, 4 * width)
    return keys


def resnet(room: str, before: int, out: int, rank: int) -> Shapes:
    keys = module(f"{room}_conv1", rank, out, before, (3, 3)) | module(f"{room}_conv2", rank, out, out, (3, 3))
    keys |= module(f"{room}_time_emb_proj", rank, out, TIME)
    return keys | (module(f"{room}_conv_shortcut", rank, out, before, (1, 1)) if before != out else {})


def unet(rank: int, only_attention: bool, convolutions: bool) -> Shapes:
    attended: Shapes = {}
    convolved: Shapes = {}
    channels, skips = WIDTHS[0], [WIDTHS[0]]
    for level, width in enumerate(WIDTHS):
        room = f"lora_unet_down_blocks_{level}"
        for layer in range(2):
            convolved |= resnet(f"{room}_resnets_{layer}", channels, width, rank)
            if level < 3:
                attended |= transformer(f"{room}_attentions_{layer}", width, rank, only_attention)
            channels = width
            skips.append(width)
        if level < 3:
            convolved |= module(f"{room}_downsamplers_0_conv", rank, width, width, (3, 3))
            skips.append(width)
    attended |= transformer("lora_unet_mid_block_attentions_0", channels, rank, only_attention)
    for layer in range(2):
        convolved |= resnet(f"lora_unet_mid_block_resnets_{layer}", channels, channels, rank)
    for level, width in enumerate(reversed(WIDTHS)):
        room = f"lora_unet_up_blocks_{level}"
        for layer in range(3):
            convolved |= resnet(f"{room}_resnets_{layer}", channels + skips.pop(), width, rank)
            channels = width
            if level:
                attended |= transformer(f"{room}_attentions_{layer}", width, rank, only_attention)
        if level < 3:
            convolved |= module(f"{room}_upsamplers_0_conv", rank, width, width, (3, 3))
    return attended | (convolved if convolutions else {})


def text_encoder(rank: int, only_attention: bool) -> Shapes:
    keys: Shapes = {}
    for layer in range(12):
        room = f"lora_te_text_model_encoder_layers_{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            keys |= module(f"{room}_self_attn_{part}", rank, TEXT, TEXT)
        if not only_attention:
            keys |= module(f"{room}_mlp_fc1", rank, 4 * TEXT, TEXT) | module(f"{room}_mlp_fc2", rank, TEXT, 4 * TEXT)
    return keys


def lora_keys(rank: int, only_attention: bool = False, convolutions: bool = False) -> Shapes:
    """Every key with its shape: by default those of kohya's own LoRA, 264 modules of three."""
    return unet(rank, only_attention, convolutions) | text_encoder(rank, only_attention)
