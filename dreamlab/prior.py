"""Class images: what the untouched model draws for the class prompt, so that training can hold on to it.

They are cached under the hash of the recipe that made them: weights, prompt, sampler, size, seeds, precision. Image k
comes from its own seed, so asking for more keeps the first ones. Each file carries its recipe's key and its number; a
file that says otherwise was not made here and is refused. Processes that want the same at once take turns, so that one
draws what all of them use.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dreamlab.errors import UserError
from dreamlab.inversion import reading
from dreamlab.models import Family
from dreamlab.pictures import read_settings, save_picture, written_beside
from dreamlab.progress import progress
from dreamlab.runs import write_json
from dreamlab.sample import Sampler, draw
from dreamlab.subject import is_decodable
from dreamlab.turns import one_at_a_time


def fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """Hash of every weight of some networks, in the order of their parts and names."""
    named = [
        (f"{part_name}.{name}{tuple(weight.shape)}", weight)
        for part_name, part in sorted(parts.items()) for name, weight in part.state_dict().items()
    ]  # fmt: skip

    def hashed(weight: torch.Tensor) -> str:
        # A scalar has no dimension to view as bytes along
        return hashlib.sha256(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data).hexdigest()

    with ThreadPoolExecutor() as pool:  # several gigabytes at full size, and hashing lets other threads run
        hashes = list(pool.map(hashed, [weight for _, weight in named]))
    told = [[name, value] for (name, _), value in zip(named, hashes, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change with any part of the recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def recipe_of(model: Family, sampler: Sampler, precision: str) -> dict[str, Any]:
    """All that decides a picture besides its prompt and seed."""
    drawn_with = precision if precision == "fp32" else f"{precision} weights"  # see halves.py
    return {
        "weights": model.fingerprint or fingerprint(model.parts()), "precision": drawn_with,
        "clip_skip": model.options.clip_skip, "zero_terminal_snr": model.options.zero_terminal_snr, **asdict(sampler),
    }  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A picture that is to lie at `path`; `stamp` is written into it, and says that it is this one."""

    path: Path
    prompt: str
    seed: int
    stamp: dict[str, Any]

    def is_there(self) -> bool:
        """Whether it is; UserError where another picture has its name."""
        if not self.path.exists() or not is_decodable(self.path):
            return False
        if {key: value for key, value in read_settings(self.path).items() if key in self.stamp} != self.stamp:
            raise UserError(
                f"{self.path} was not made by this recipe. Move it away: your own class images go into class_dir."
            )
        return True


def draw_missing(
    model: Family, pictures: Sequence[Wanted], sampler: Sampler, *, title: str, device: torch.device, precision: str,
    batch_size: int, jpeg_quality: int | None = None,
) -> None:  # fmt: skip
    """Draw the pictures of one folder that aren't there yet, with `model`, which must be untouched."""
    missing = [picture for picture in pictures if not picture.is_there()]
    if not missing:
        return
    with one_at_a_time(missing[0].path.parent):
        missing = [picture for picture in missing if not picture.is_there()]  # another may have drawn them meanwhile
        if not missing:
            return
        bar = progress(title, len(pictures), done=len(pictures) - len(missing))
        with bar as advance, written_beside() as write:

            def keep(index: int, image: Image.Image) -> None:
                picture = missing[index]
                stamp = {"prompt": picture.prompt, "seed": picture.seed, **picture.stamp}
                write(save_picture, image, picture.path, stamp, jpeg_quality)
                advance()

            draw(
                model, [picture.prompt for picture in missing], [picture.seed for picture in missing], sampler,
                device=device, precision=precision, batch_size=batch_size, on_image=keep,
            )  # fmt: skip


def class_images(
    model: Family, prompt: str, count: int, sampler: Sampler, seed: int, *,
    cache_dir: Path, own: Sequence[Path], device: torch.device, precision: str, batch_size: int,
    jpeg_quality: int | None = None,
) -> list[Path]:  # fmt: skip
    """`count` class images, the person's `own` ones first; the rest are drawn by `model`, which must be untouched."""
    if len(own) >= count:
        return list(own[:count])
    recipe = {**recipe_of(model, sampler, precision), "prompt": prompt, "seed": seed, "jpeg_quality": jpeg_quality}
    key, suffix = recipe_key(recipe), "jpg" if jpeg_quality else "png"
    folder = cache_dir / "prior" / key
    pictures = [
        Wanted(folder / f"{number:05d}.{suffix}", prompt, seed + number, {"recipe": key, "number": number})
        for number in range(count - len(own))
    ]
    if not (folder / "manifest.json").is_file():
        write_json(folder / "manifest.json", recipe)
    draw_missing(
        model, pictures, sampler, title="class images", device=device, precision=precision, batch_size=batch_size,
        jpeg_quality=jpeg_quality,
    )  # fmt: skip
    return [*own, *(picture.path for picture in pictures)]


def reference_images(
    model: Family, prompts: Sequence[str], seeds: Sequence[int], sampler: Sampler, *,
    cache_dir: Path, device: torch.device, precision: str, batch_size: int,
) -> list[Path]:  # fmt: skip
    """What the untouched model draws for each prompt and seed; shared by every run that compares itself with it."""
    recipe = recipe_of(model, sampler, precision)
    key = recipe_key(recipe)
    folder, pictures = cache_dir / "reference" / key, []
    for prompt, seed in zip(prompts, seeds, strict=True):
        told = [prompt, seed, *reading(model, prompt)]  # new words aren't in the hash of the weights
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        pictures.append(Wanted(folder / f"{name}.png", prompt, seed, {"recipe": key, "prompt": prompt, "seed": seed}))
    draw_missing(
        model, pictures, sampler, title="base samples", device=device, precision=precision, batch_size=batch_size
    )
    return [picture.path for picture in pictures]
