"""One photo as the doctor sees it: what its file says, and what its pixels show at the size that the model sees.

Cheap: large JPEGs are decoded at a fraction of their size, since what the crop doesn't show is not learnt. About a
tenth of a second for a photo of 12 megapixels. Called by doctor.py.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dreamlab import borders, sharpness
from dreamlab.photos import UPRIGHT, Loading, Region, bucket, crop, has_alpha, read_mask, read_photo
from dreamlab.sameness import Fingerprint, fingerprint

_ORIENTATION = 0x0112
_GRID_PX = 1024  # of a photo's middle that are searched for JPEG's blocks


@dataclass(frozen=True)
class Look:
    """What there is to know of a photo."""

    path: Path
    size: tuple[int, int]  # width and height in pixels, upright
    enlarged: float  # how much larger its crop is than its own pixels; below 1 it is reduced
    cut_away: float  # share of the photo that the crop leaves out
    blur_px: float | None  # σ of its sharpest edges in the crop's pixels; None where it has no edges
    quality: int | None  # of its JPEG compression, where that shows in the crop
    blocks: float | None  # the same by its pixels: 1 is none
    is_sideways: bool  # EXIF says how to turn it, and the settings say not to
    frames: int  # 1 but for animations and documents of several pages
    transparent: float  # share of its pixels that can be seen through
    subject_cut: float | None  # share of the mask's white that lies outside the crop; None without a mask
    bars: dict[str, float]  # sides with a bar, and its share of the photo
    border: borders.Ring
    fingerprint: Fingerprint


@dataclass(frozen=True)
class _File:
    """What the header of a picture file says."""

    size: tuple[int, int]  # as it will be read
    is_sideways: bool
    frames: int
    quality: int | None


def look_at(
    path: Path, side_px: int, bucket_step: int | None = None, loading: Loading = UPRIGHT, mask: Path | None = None
) -> Look:
    """Look at a photo that is cut to a square, or to a bucket of `bucket_step`; `mask` is its mask's file or itself."""
    file = _header(path, loading)
    height, width = shape = crop_shape(file.size, side_px, bucket_step)
    enlarged = max(width / file.size[0], height / file.size[1])
    image = read_photo(path, loading, least_px=math.ceil(1.25 * max(shape)))
    # An enlarged photo is judged in its own pixels: that it is enlarged is said already
    side = [max(1, round(length / max(1.0, enlarged))) for length in shape]
    pixels = (crop(image, Region(side[0], side[1])) * 255).byte().permute(1, 2, 0).numpy()
    shows = enlarged > 0.5  # a photo reduced to less than half shows nothing of its compression
    small = image.resize([max(1, round(256 * length / max(image.size))) for length in image.size], Image.Resampling.BOX)
    kept = height * width / (enlarged**2 * file.size[0] * file.size[1])
    return Look(
        path=path, size=file.size, enlarged=enlarged, cut_away=max(0.0, 1 - kept),
        blur_px=sharpness.edge_blur_px(_grey(pixels)), quality=file.quality if shows else None,
        blocks=_blocks(path, loading) if shows else None, is_sideways=file.is_sideways, frames=file.frames,
        transparent=_transparent(path), subject_cut=_subject_cut(path, mask, shape, loading),
        bars=borders.bars(np.asarray(small)), border=borders.ring(np.asarray(small.resize((64, 64)))),
        fingerprint=fingerprint(image),
    )  # fmt: skip


def crop_shape(size: tuple[int, int], side_px: int, bucket_step: int | None) -> tuple[int, int]:
    """The height and width that a photo of `size`, width and height, is cut to."""
    return bucket(size, side_px, bucket_step) if bucket_step else (side_px, side_px)


def _header(path: Path, loading: Loading) -> _File:
    with Image.open(path) as opened:
        orientation = opened.getexif().get(_ORIENTATION, 1)
        width, height = opened.size
        size = (height, width) if loading.exif and orientation in (5, 6, 7, 8) else (width, height)
        # A phone's MPO holds a depth or brightness map behind the photo: nothing that is missed
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        return _File(size, orientation in range(2, 9) and not loading.exif, frames, sharpness.jpeg_quality(opened))


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float32)


def _blocks(path: Path, loading: Loading) -> float | None:
    image = read_photo(path, loading)  # whole: a reduced one has no blocks
    left, top = max(0, (image.width - _GRID_PX) // 2), max(0, (image.height - _GRID_PX) // 2)
    middle = image.crop((left, top, min(image.width, left + _GRID_PX), min(image.height, top + _GRID_PX)))
    return sharpness.blockiness(np.asarray(middle.convert("L"), np.float32)) if min(middle.size) >= 64 else None


def _transparent(path: Path) -> float:
    if not has_alpha(path):
        return 0.0
    return float((np.asarray(read_mask(path, Loading(exif=False), is_alpha=True)) < 250).mean())


def _subject_cut(path: Path, mask: Path | None, shape: tuple[int, int], loading: Loading) -> float | None:
    """Only a mask says what the subject is."""
    if mask is None:
        return None
    image = read_mask(mask, loading, is_alpha=mask == path)
    whole = np.asarray(image, np.float32).mean()
    scale = max(shape[1] / image.width, shape[0] / image.height)
    seen = float(crop(image, Region(*shape)).mean()) * 255 * shape[0] * shape[1] / scale**2
    total = float(whole) * image.width * image.height
    return max(0.0, 1 - seen / total) if total else None
