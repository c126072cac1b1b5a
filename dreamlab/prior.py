"""Class images: what the untouched model draws for the class prompt, so that training can hold on to it.

They are cached under the hash of the recipe that made them: weights, prompt, sampler, size, seeds, precision. Image k
comes from its own seed, so asking for more keeps the first ones. Each file carries its recipe's key and its number; a
file that says otherwise was not made here and is refused. No lock is needed: whoever writes image k writes the same.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.pictures import read_settings, save_picture
from dreamlab.progress import progress
from dreamlab.runs import write_json
from dreamlab.sample import Sampler, draw
from dreamlab.subject import is_decodable


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """Hash of every weight of some networks, in the order of their parts and names."""
    state = hashlib.sha256()
    for part_name, part in sorted(parts.items()):
        for name, weight in part.state_dict().items():
            state.update(f"{part_name}.{name}{tuple(weight.shape)}".encode())
            state.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change with any part of the recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _is_ours(path: Path, key: str, number: int) -> bool:
    """Whether image `number` of this recipe is there; UserError where another picture has its name."""
    if not path.exists() or not is_decodable(path):
        return False
    stamp = read_settings(path)
    if (stamp.get("recipe"), stamp.get("number")) != (key, number):
        raise UserError(f"{path} was not made by this recipe. Move it away: your own class images go into class_dir.")
    return True


def class_images(
    model: Family, prompt: str, count: int, sampler: Sampler, seed: int, *,
    cache_dir: Path, own: Sequence[Path], device: torch.device, precision: str, batch_size: int,
    jpeg_quality: int | None = None,
) -> list[Path]:  # fmt: skip
    """`count` class images, the person's `own` ones first; the rest are drawn by `model`, which must be untouched."""
    if len(own) >= count:
        return list(own[:count])
    recipe = {
        "weights": fingerprint(model.parts()), "prompt": prompt, "seed": seed, "precision": precision,
        "clip_skip": model.options.clip_skip, "zero_terminal_snr": model.options.zero_terminal_snr,
        "jpeg_quality": jpeg_quality, **asdict(sampler),
    }  # fmt: skip
    key = recipe_key(recipe)
    folder, suffix = cache_dir / "prior" / key, "jpg" if jpeg_quality else "png"
    paths = [folder / f"{number:05d}.{suffix}" for number in range(count - len(own))]
    missing = [number for number, path in enumerate(paths) if not _is_ours(path, key, number)]
    if missing:
        write_json(folder / "manifest.json", recipe)
        with progress("class images", len(paths), done=len(paths) - len(missing)) as advance:

            def keep(index: int, image: Image.Image) -> None:
                number = missing[index]
                stamp = {"prompt": prompt, "seed": seed + number, "recipe": key, "number": number}
                save_picture(image, paths[number], stamp, jpeg_quality)
                advance()

            draw(
                model, [prompt] * len(missing), [seed + number for number in missing], sampler,
                device=device, precision=precision, batch_size=batch_size, on_image=keep,
            )  # fmt: skip
    return [*own, *paths]
