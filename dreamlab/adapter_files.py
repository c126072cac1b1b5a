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
_TEXT_WORDS = {  # peft's -> those by which diffusers and transformers know them in a text encoder
    "lora_A.weight": "lora_linear_layer.down.weight", "lora_B.weight": "lora_linear_layer.up.weight",
    "lora_magnitude_vector": "lora_magnitude_vector.weight",
}  # fmt: skip


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
    named = {_lora_name(part, name): weight for part, state in weights.items() for name, weight in state.items()}
    # Without this word of it, diffusers would take alpha for the rank
    wanted = ("r", "lora_alpha", "lora_dropout", "use_dora", "target_modules")
    about = {
        f"{part}.{key}": sorted(value) if isinstance(value, set) else value
        for part, config in configs.items() for key, value in config.to_dict().items() if key in wanted
    }  # fmt: skip
    save_file(named, folder / LORA_FILE, {"format": "pt", "lora_adapter_metadata": json.dumps(about, sort_keys=True)})


def _lora_name(part: str, name: str) -> str:
    """A weight's name in diffusers' file; a text encoder's has words of its own."""
    if part.startswith("text_encoder"):
        name = _TEXT + name.removeprefix(_TEXT)
        for ours, theirs in _TEXT_WORDS.items():
            name = name.replace(ours, theirs)
    return f"{part}.{name}"


def _from_lora_name(name: str) -> tuple[str, str]:
    """The part, and the name in it."""
    part, _, name = name.partition(".")
    if part.startswith("text_encoder"):
        name = name.removeprefix(_TEXT)
        for ours, theirs in _TEXT_WORDS.items():
            name = name.replace(theirs, ours)
    return part, name


def read(folder: Path, kind: str, parts: Sequence[str]) -> Weights:
    """The weights that `write` has put there, without `text_model.`; UserError where a file is broken."""
    weights: Weights = {part: {} for part in parts}
    for file in files_of(kind, parts):
        try:
            state = load_file(folder / file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / file} cannot be read ({error}). Choose another snapshot.") from None
        for name, weight in state.items():
            if kind == "lokr":
                part, bare = file.split("/")[0], name.removeprefix(_PEFT).removeprefix(_TEXT)
            else:
                part, bare = _from_lora_name(name)
            weights.setdefault(part, {})[bare] = weight
    return weights
