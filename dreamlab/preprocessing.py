"""Preprocessing: from a picture to the pixels that an encoder was trained on, with Pillow and torch alone.

Libraries differ in how they resize, and their versions do; a metric must not. So every step stands here, follows the
checkpoint's own `preprocessor_config.json`, and is recorded in the results.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Colour = tuple[float, ...]  # one number for each of red, green and blue


@dataclass(frozen=True)
class Preprocessing:
    """From picture to pixels `(3, height, width)`: resize, centre crop, scale to [0, 1], normalise."""

    resize_px: int | tuple[int, int] | None  # shortest side, or (height, width), which may distort
    resample: int  # Pillow's number: 1 Lanczos, 2 bilinear, 3 bicubic
    crop_px: tuple[int, int] | None  # (height, width)
    mean: Colour
    std: Colour
    source: str  # where these numbers come from

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.convert("RGB")
        if isinstance(self.resize_px, int):
            short, long = sorted(image.size)
            other = int(self.resize_px * long / short)  # cut off, not rounded, as transformers does
            size = (self.resize_px, other) if image.width <= image.height else (other, self.resize_px)
            image = image.resize(size, Image.Resampling(self.resample))
        elif self.resize_px:
            image = image.resize(self.resize_px[::-1], Image.Resampling(self.resample))
        if self.crop_px:
            top, left = ((have - want) // 2 for have, want in zip(image.size[::-1], self.crop_px, strict=True))
            image = image.crop((left, top, left + self.crop_px[1], top + self.crop_px[0]))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def read_preprocessing(settings: dict[str, Any] | None, image_px: int, mean: Colour, std: Colour) -> Preprocessing:
    """What a checkpoint's `preprocessor_config.json` says; without one, a crop of `image_px`, `mean` and `std`.

    A bare number as size means the shortest side where a crop follows and a square where none does: so the first
    versions of these files were read, DINO's among them.
    """
    if settings is None:
        return Preprocessing(image_px, 3, (image_px, image_px), mean, std, "dreamlab's default")
    crops = settings.get("do_center_crop", "crop_size" in settings)
    size = settings.get("size", image_px)
    if isinstance(size, int):
        resize: int | tuple[int, int] | None = size if crops else (size, size)
    else:
        resize = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    crop = settings.get("crop_size", image_px)
    normalises = settings.get("do_normalize", True)
    return Preprocessing(
        resize_px=resize if settings.get("do_resize", True) else None,
        resample=settings.get("resample", 3),
        crop_px=((crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])) if crops else None,
        mean=tuple(settings.get("image_mean", mean)) if normalises else (0.0,) * 3,
        std=tuple(settings.get("image_std", std)) if normalises else (1.0,) * 3,
        source="preprocessor_config.json",
    )
