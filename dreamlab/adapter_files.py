"""Files of LoRA, DoRA and LoKr that other programs read, in a run's model/ and in its snapshots.

    lora, dora   pytorch_lora_weights.safetensors, what diffusers' pipe.load_lora_weights(folder) looks for
    lokr         <part>/adapter_model.safetensors and adapter_config.json: peft's own, since diffusers reads no LoKr

A text encoder's names begin with `text_model.` in diffusers' file, as they always have. Called by snapshots.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamlab.errors import UserError
from dreamlab.low_rank import LowRank, layer_of, peft_config

Weights = dict[str, dict[str, Tensor]]  # by part and by name in the part, as peft writes it: to_q.lora_A.weight
LORA_FILE = "pytorch_lora_weights.safetensors"
_TEXT, _PEFT = "text_model.", "base_model.model."


def files_of(kind: str, parts: Sequence[str]) -> list[str]:
    """The files, below the folder, that hold the weights of an adapter."""
    return [f"{part}/adapter_model.safetensors" for part in parts] if kind == "lokr" else [LORA_FILE]


def write(folder: Path, adapter: LowRank, weights: Weights) -> None:
    """Write an adapter's weights into a folder that is there."""
    configs = {
        part: peft_config(adapter, sorted({layer_of(name) for name in state})) for part, state in weights.items()
    }
    if adapter.kind == "lokr":
        for part, state in weights.items():
            configs[part].save_pretrained(folder / part)
            file = folder / part / "adapter_model.safetensors"
            save_file({_PEFT + name: weight for name, weight in state.items()}, file, {"format": "pt"})
        return
    named = {
        f"{part}.{_TEXT * part.startswith('text_encoder')}{name.removeprefix(_TEXT)}": weight
        for part, state in weights.items() for name, weight in state.items()
    }  # fmt: skip
    # Without this word of it, diffusers would take alpha for the rank
    wanted = ("r", "lora_alpha", "lora_dropout", "use_dora", "target_modules")
    about = {
        f"{part}.{key}": sorted(value) if isinstance(value, set) else value
        for part, config in configs.items() for key, value in config.to_dict().items() if key in wanted
    }  # fmt: skip
    save_file(named, folder / LORA_FILE, {"format": "pt", "lora_adapter_metadata": json.dumps(about, sort_keys=True)})


def read(folder: Path, kind: str, parts: Sequence[str]) -> Weights:
    """The weights that `write` has put there, without `text_model.`; UserError where a file is broken."""
    weights: Weights = {part: {} for part in parts}
    for file in files_of(kind, parts):
        try:
            state = load_file(folder / file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / file} cannot be read ({error}). Choose another snapshot.") from None
        for name, weight in state.items():
            part = file.split("/")[0] if kind == "lokr" else name.split(".")[0]
            bare = name.removeprefix(_PEFT if kind == "lokr" else f"{part}.").removeprefix(_TEXT)
            weights.setdefault(part, {})[bare] = weight
    return weights
