"""A snapshot: what a run has learnt up to some update, in half precision, small enough to keep many of.

    snapshots/update-000400/snapshot.json         the update, the base model, the parts
                            unet.safetensors      weights under diffusers' own names, fp16
                            text_encoder.safetensors

Only weights that learn are there: everything else is the base model's, which the JSON names. An adapter's, and rows of
new words, are in files that other programs read (adapter_files.py, embedding_files.py), and such a folder, in float32,
is also what their run leaves in model/. A snapshot stands wherever a model can be named; models.load() comes here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamlab import adapter_files, embedding_files, inversion
from dreamlab.errors import UserError
from dreamlab.low_rank import LowRank, file_name, fill, insert, layer_of, low_rank_of, merge
from dreamlab.models import PLAIN, Family, Options, load
from dreamlab.off_gpu import off_gpu
from dreamlab.runs import write_json
from dreamlab.schema import Model
from dreamlab.whole import written_whole

_PREFIX = "text_model."  # stands before a text encoder's names in files; in memory only for some versions
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
BASE = ("family", "source", "revision", "variant", "vae", "config")  # what names a base model: load()'s arguments


def base_of(model: Model) -> dict[str, str | None]:
    """What a snapshot says of its base model; a local one by its whole path, since others read it from elsewhere."""
    named = {key: getattr(model, key) for key in BASE}
    for key in ("source", "vae", "config"):
        if named[key] and Path(named[key]).expanduser().exists():
            named[key] = str(Path(named[key]).expanduser().resolve())
    return named


def origin_of(model: Model, zero_terminal_snr: bool, adapter: LowRank | None) -> dict[str, Any]:
    """What a snapshot says of where it comes from: the base model, how that was used, the adapter beside it."""
    used = {
        "zero_terminal_snr": zero_terminal_snr, "without": model.without, "adapter": adapter and asdict(adapter),
    }  # fmt: skip
    return {"base": base_of(model), **{key: value for key, value in used.items() if value}}


def write_snapshot(
    folder: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any], dtype: str = "fp16"
) -> None:  # fmt: skip
    """Write `weights`, named <part>.<name in the part>, and `about`: `base`, `update`, maybe `adapter` and `tokens`."""
    parts: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}  # by text encoder: those of all tokens, one after another
    adapter = low_rank_of(about["adapter"]) if "adapter" in about else None
    for name, weight in weights.items():
        part, _, key = name.partition(".")
        if inversion.is_rows(key):
            rows[part] = off_gpu(weight.to(DTYPES[dtype]))
            continue
        is_text = part.startswith("text_encoder")
        told = file_name(key) if adapter else _PREFIX * is_text + key.removeprefix(_PREFIX)
        parts.setdefault(part, {})[told] = off_gpu(weight.to(DTYPES[dtype]))
    with written_whole(folder) as temporary:
        temporary.mkdir()
        if adapter:
            adapter_files.write(temporary, adapter, parts)
        else:
            for part, state in parts.items():
                save_file(state, temporary / f"{part}.safetensors", {"format": "pt"})
        for token, count in about.get("tokens", {}).items():
            mine, rows = {p: w[:count] for p, w in rows.items()}, {p: w[count:] for p, w in rows.items()}
            embedding_files.write(temporary / embedding_files.file_of(token), token, mine)
        write_json(temporary / "snapshot.json", {**about, "parts": sorted(parts), "dtype": dtype})


def read_about(folder: Path) -> dict[str, Any]:
    """The content of snapshot.json; UserError where it is unreadable or no snapshot's."""
    try:
        about = dict(json.loads((folder / "snapshot.json").read_text(encoding="utf-8")))
        if not all(
            isinstance(name, str) for name in (about["base"]["family"], about["base"]["source"], *about["parts"])
        ):
            raise TypeError("a name is no text")
        files = [f"{part}.safetensors" for part in about["parts"]]
        if "adapter" in about:
            files = adapter_files.files_of(low_rank_of(about["adapter"]).kind, about["parts"])
        files += [embedding_files.file_of(token) for token in about.get("tokens", {})]
        missing = [file for file in files if not (folder / file).is_file()]
        reason = f"{missing[0]} is missing" if missing else ""
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"snapshot.json: {type(error).__name__} {error}"
    if reason:
        raise UserError(f"{folder} is no readable snapshot ({reason}). Choose another one.")
    return about


def load_snapshot(
    folder: Path, vae: str | None = None, config: str | None = None, options: Options = PLAIN
) -> Family:  # fmt: skip
    """The base model, float32, with the snapshot's weights in it; UserError where they don't fit each other."""
    about = read_about(folder)
    base = {key: about["base"].get(key) for key in BASE}
    if vae:
        base["vae"] = vae
    if config:
        base["config"] = config
    if about.get("zero_terminal_snr"):  # a pipeline would have it in its scheduler
        options = replace(options, zero_terminal_snr=True)
    if about.get("without"):
        options = replace(options, without=tuple(about["without"]))
    try:
        model = load(**base, options=options)
    except UserError as error:
        raise UserError(f"The base model of {folder} (see its snapshot.json) cannot be loaded. {error}") from None
    for part in about["parts"]:
        if part not in model.parts():
            raise UserError(f"{folder} holds a part {part!r}, which its base {base['source']!r} has not.")
    if "adapter" in about:
        _merge(model, folder, about)
    else:
        for part in about["parts"]:
            _fill(model.parts()[part], folder / f"{part}.safetensors", str(base["source"]))
    for token in about.get("tokens", {}):  # last, as tables have grown then
        inversion.add_token(model, token, embedding_files.read(folder / embedding_files.file_of(token), token))
    inversion.merge(model)
    return model


def _fill(part: nn.Module, file: Path, base: str) -> None:
    """Put the weights in `file` into their places in `part`; the others stay as the base has them."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}). Choose another snapshot.") from None
    own = part.state_dict()
    names = {name.removeprefix(_PREFIX): name for name in own}
    weights = {names.get(name.removeprefix(_PREFIX), name): weight for name, weight in weights.items()}
    strange = [name for name, weight in weights.items() if name not in own or own[name].shape != weight.shape]
    if strange:
        raise UserError(
            f"{file} does not fit its base {base!r}: that has no {strange[0]!r} of this shape"
            f" ({len(strange)} of {len(weights)} weights). Put the right base into snapshot.json."
        )
    part.load_state_dict(weights, strict=False)  # what is missing is the base's, and nothing is unknown


def _merge(model: Family, folder: Path, about: Mapping[str, Any]) -> None:
    """Add an adapter's weights to the layers that they belong to."""
    adapter, parts = low_rank_of(about["adapter"]), model.parts()
    weights = adapter_files.read(folder, adapter.kind, about["parts"])
    for part, state in weights.items():
        prefix = _PREFIX * hasattr(parts[part], "text_model")
        own = {name for name, _ in parts[part].named_modules()}
        layers = sorted({prefix + layer_of(name) for name in state})
        strange = [name for name in layers if name not in own]
        if not strange:
            insert({part: parts[part]}, adapter, {part: layers})
            strange = fill(parts[part], {prefix + name: weight for name, weight in state.items()})
        if strange:
            raise UserError(
                f"{folder} does not fit its base {about['base']['source']!r}: {part} has no {strange[0]!r} of this"
                f" shape ({len(strange)} in all). Put the right base into snapshot.json."
            )
        merge(parts[part])
