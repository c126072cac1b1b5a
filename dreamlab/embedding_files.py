"""Files of learnt words that other programs read: <token>.safetensors, in a run's model/ and in its snapshots.

    {<token>: (n, d)}                        one text encoder, Stable Diffusion 1 and 2
    {clip_l: (n, d1), clip_g: (n, d2)}       several

diffusers' pipe.load_textual_inversion reads the first, and takes its token from it; of the second it is given one entry
for each encoder. A1111 and ComfyUI read both, and know the word by the file's name. Called by snapshots.py and export.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamlab.errors import UserError

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


def file_of(token: str) -> str:
    """The file's name."""
    return re.sub(r"[^\w-]", "_", token) + ".safetensors"


def write(file: Path, token: str, rows: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write the rows of one token, by text encoder."""
    only = len(rows) == 1
    state = {token if only else KEYS[part]: weight.detach().cpu().contiguous() for part, weight in rows.items()}
    save_file(state, file, {"format": "pt", **(about or {})})


def read(file: Path, token: str) -> dict[str, Tensor]:
    """The rows that `write` has put there, float32, by text encoder; UserError where the file is broken."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}). Choose another snapshot.") from None
    parts = {token: "text_encoder", **{key: part for part, key in KEYS.items()}}
    strange = [key for key in state if key not in parts]
    if strange:
        raise UserError(f"{file} holds {strange[0]!r}, which is no word of dreamlab's. Choose another snapshot.")
    return {parts[key]: weight.float() for key, weight in state.items()}
