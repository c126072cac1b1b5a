"""Picture files: which there are in a folder, what belongs to each, and how they become pixels.

A photo may have a caption beside it (dog.txt or dog.jpg.txt) and a mask (dog.mask.png, white where it is to be learnt).
Called by subject.py, which finds them, and data.py, which crops them.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# What a file may be, whatever its name says. Pillow reads more, EPS for one by running Ghostscript on it
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
MOST_TO_ONE = 20  # of a picture's sides: a line of 50000 x 1 px scaled to cover a crop would fill the memory
MASK_ENDINGS = (".mask", "-masklabel")  # ours, and OneTrainer's
RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Loading:
    """How a file becomes upright RGB pixels of another size."""

    exif: bool = True  # turn it as the camera was held
    background: str = "white"  # behind what is transparent
    resample: str = "lanczos"


UPRIGHT = Loading()


@dataclass(frozen=True)
class Region:
    """A crop: its sides in pixels, where it lies in what the sides leave over (0 to 1: x, y), and whether mirrored."""

    height: int
    width: int
    offset: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder in a fixed order; hidden files, masks, captions and other junk are passed over."""
    return sorted(
        (path for path in folder.iterdir()
         if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.stem.endswith(MASK_ENDINGS)
         and path.is_file()),
        key=lambda path: path.name,
    )  # fmt: skip


def caption_of(photo: Path) -> Path | None:
    """The caption file beside a photo."""
    named = (photo.with_suffix(".txt"), photo.with_name(photo.name + ".txt"))
    return next((path for path in named if path.is_file()), None)


def mask_of(photo: Path) -> Path | None:
    """The mask file beside a photo."""
    named = (photo.with_name(photo.stem + ending + ".png") for ending in MASK_ENDINGS)
    return next((path for path in named if path.is_file()), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture in a file; OSError in the block for whatever is none that we read."""
    try:
        with Image.open(path) as image:
            if image.format not in FORMATS:
                raise OSError(f"it is {image.format}, which is none of {', '.join(FORMATS)}")
            if max(image.size) > MOST_TO_ONE * min(image.size):
                raise OSError(f"{image.width} x {image.height} px: one side is over {MOST_TO_ONE} times the other")
            yield image
    except OSError:
        raise
    except Exception as error:  # at a broken file decoders raise whatever they like
        raise OSError(str(error) or type(error).__name__) from error


def has_alpha(path: Path) -> bool:
    """Whether a picture file has transparency; raises OSError if undecodable."""
    with _opened(path) as image:
        return _has_alpha(image)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def read_photo(path: Path, loading: Loading = UPRIGHT, least_px: int | None = None) -> Image.Image:
    """An upright RGB image, what is transparent on the background's colour; raises OSError if undecodable.

    With `least_px`, a JPEG may come out smaller, neither side below it: decoding a half or a quarter is quicker.
    """
    with _opened(path) as opened:
        if least_px:
            share = least_px / min(opened.size)
            opened.draft(None, (round(opened.width * share), round(opened.height * share)))
        image = ImageOps.exif_transpose(opened) if loading.exif else opened.copy()
        if _has_alpha(image):
            image = image.convert("RGBA")
            behind = Image.new("RGBA", image.size, loading.background)
            return Image.alpha_composite(behind, image).convert("RGB")
        if image.mode == "F" or image.mode.startswith("I"):  # a plain convert would clip, not scale
            image = _to_8_bit(image)
        return image.convert("RGB")


def read_mask(path: Path, loading: Loading, *, is_alpha: bool) -> Image.Image:
    """A grey mask, upright as its photo is: a mask file, or the transparency of the photo at `path` itself."""
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened) if loading.exif else opened.copy()
        return image.convert("RGBA").getchannel("A") if is_alpha else image.convert("L")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit, 32-bit or float grey image as mode L; white is 65535 or, for floats, 1 or 255 if that is enough."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    peak = float(values.max())
    white = next((white for white in ((1, 255, 65535) if image.mode == "F" else (65535,)) if peak <= white), peak)
    return Image.fromarray(np.rint((values / white).clip(0, 1) * 255).astype(np.uint8))


def digest(paths: Iterable[Path]) -> str:
    """Hash of the files' content in order; a changed, added or reordered photo changes it."""
    state = hashlib.sha256()
    for path in paths:
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def crop(image: Image.Image, region: Region, resample: str = "lanczos") -> Tensor:
    """The pixels `(bands, height, width)` of a region, in [0, 1]; the image is scaled so that it just covers it."""
    width, height, left, top = _placed(image.size, region)
    image = image.resize((width, height), RESAMPLING[resample])
    image = image.crop((left, top, left + region.width, top + region.height))
    if region.flip:
        image = ImageOps.mirror(image)
    values = np.array(image)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy()).float() / 255


def _placed(size: tuple[int, int], region: Region) -> tuple[int, int, int, int]:
    """Width and height that an image of `size` (width, height) is scaled to, and the region's left and top there."""
    scale = max(region.width / size[0], region.height / size[1])
    width, height = max(region.width, round(size[0] * scale)), max(region.height, round(size[1] * scale))
    left, top = round((width - region.width) * region.offset[0]), round((height - region.height) * region.offset[1])
    return width, height, left, top


def micro_conditioning(size: tuple[int, int], region: Region) -> list[int]:
    """How a picture of `size` (width, height) was cut: its height and width, the crop's top and left, its own sides.

    Six numbers in the order of SDXL (Podell et al. 2023, arXiv 2307.01952, section 2.2), which is told them; top and
    left are of the scaled picture, and of the mirrored one where the crop is mirrored.
    """
    width, _, left, top = _placed(size, region)
    left = width - region.width - left if region.flip else left
    return [size[1], size[0], top, left, region.height, region.width]


def bucket(size: tuple[int, int], resolution: int, step: int) -> tuple[int, int]:
    """The height and width, multiples of `step`, nearest to the shape of an image of `size` (width, height).

    Among the pairs whose area is at most `resolution`² and whose sides are at most twice it, as in NovelAI's
    "aspect ratio bucketing"; a square image of any size gets the square of side `resolution`.
    """
    wanted = size[0] / size[1]
    best, least = (resolution, resolution), abs(np.log(wanted))
    for width in range(step, 2 * resolution + 1, step):
        height = min(2 * resolution, resolution**2 // width) // step * step
        if height and abs(np.log(wanted / (width / height))) < least - 1e-9:
            best, least = (height, width), abs(np.log(wanted / (width / height)))
    return best
