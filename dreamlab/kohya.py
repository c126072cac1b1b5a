"""Key names of adapters in kohya's format, which A1111 and ComfyUI read: python -m dreamlab.export format=kohya.

    lora_unet_<layer>.lora_down.weight  A     lora_unet_<layer>.lora_up.weight  B     lora_unet_<layer>.alpha
    lora_te_<layer>. ...                      of the text encoder, whose layers' names begin with text_model
    lora_te1_<layer>. lora_te2_<layer>. ...   of SDXL's two
    .dora_scale                               m of DoRA, a column: the norm of each output's row
    .lokr_w1 .lokr_w2_a .lokr_w2_b ...        C, B and A of LoKr

<layer> is diffusers' name with _ for every dot; of SDXL's U-Net, the name in its original checkpoint. The metadata's
ss_ words are those that the readers look at, and what else of kohya's own is known of a run. Called by export.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlab import adapter_files
from dreamlab.errors import UserError
from dreamlab.low_rank import LowRank, layer_of, low_rank_of
from dreamlab.models import is_snapshot
from dreamlab.single_file import convert_unet
from dreamlab.snapshots import read_about

_ROOMS = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
_ROOMS_XL = {
    "unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_",
}  # fmt: skip
_WEIGHTS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def read_adapter(folder: Path) -> tuple[LowRank, adapter_files.Weights]:
    """The adapter in a run's model/ or in a snapshot; UserError where there is none."""
    about = read_about(folder) if is_snapshot(folder) else {}
    if "adapter" not in about:
        raise UserError(
            f"format=kohya is for adapters, and {folder} holds whole weights. Use format=safetensors, or train with"
            " adapter=lora."
        )
    adapter = low_rank_of(about["adapter"])
    return adapter, adapter_files.read(folder, adapter.kind, about["parts"])


def kohya_state(adapter: LowRank, weights: adapter_files.Weights, unet_xl: Any = None) -> dict[str, Tensor]:
    """An adapter's weights, float32, under kohya's names; of SDXL, whose U-Net is `unet_xl`, under SDXL's."""
    state = {}
    rooms, original = (_ROOMS, {}) if unet_xl is None else (_ROOMS_XL, original_layers(unet_xl.state_dict()))
    for part, named in weights.items():
        for name, weight in named.items():
            layer = layer_of(name)
            told = original[layer] if original and part == "unet" else layer
            room, weight = rooms[part] + told.replace(".", "_"), weight.float()
            kind = name[len(layer) + 1 :]
            if kind == "lora_magnitude_vector" and weight.ndim == 1:
                weight = weight[:, None]  # `(out, 1)`
            elif kind == "lora_magnitude_vector":
                weight = weight.transpose(0, 1)  # peft has `(1, out, 1, 1)` of a convolution
            elif kind in ("lokr_w1", "lokr_w1_a"):
                weight = weight * (adapter.alpha / adapter.rank)  # readers pass over alpha where nothing is of a rank
            state[f"{room}.{_WEIGHTS.get(kind, kind)}"] = weight
            state[f"{room}.alpha"] = torch.tensor(float(adapter.rank if adapter.kind == "lokr" else adapter.alpha))
    return state


def original_layers(unet: Mapping[str, Tensor]) -> dict[str, str]:
    """The original name of each layer of a U-Net, from its weights by diffusers' names."""
    names = zip(unet, convert_unet(dict(unet)), strict=True)
    return {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in names}


def kohya_words(adapter: LowRank, config: Mapping[str, Any], model: Any, name: str) -> dict[str, str]:
    """What kohya's trainer writes into metadata of its own, as far as it is known here; strings only."""
    is_xl, is_v = model.family == "sdxl", model.schedule.prediction_type == "v_prediction"
    is_2 = not is_xl and model.text_encoder.config.hidden_act == "gelu"
    version = "sdxl_base_v1-0" if is_xl else f"sd_v{1 + is_2}" + "_v" * is_v
    recipe = {
        "ss_learning_rate": "lr", "ss_text_encoder_lr": "text_encoder_lr", "ss_seed": "seed",
        "ss_max_train_steps": "steps", "ss_batch_size_per_device": "batch_size",
        "ss_gradient_accumulation_steps": "accumulate", "ss_prior_loss_weight": "prior_weight",
        "ss_resolution": "resolution", "ss_mixed_precision": "precision",
    }  # fmt: skip
    is_lokr = adapter.kind == "lokr"
    words = {
        "ss_output_name": name, "ss_base_model_version": version, "ss_v2": str(is_2),
        "ss_network_module": "lycoris.kohya" if is_lokr else "networks.lora",
        "ss_network_dim": str(adapter.rank), "ss_network_alpha": f"{adapter.alpha:g}",
        "ss_network_args": '{"algo": "lokr"}' if is_lokr else "{}",
        "ss_network_dropout": f"{adapter.dropout:g}",
    }  # fmt: skip
    return {**words, **{ours: str(config[key]) for ours, key in recipe.items() if config.get(key) is not None}}
