"""Photos and class images as training samples.

`read_photo` turns any picture file into upright RGB pixels. `TrainingData` yields one `Batch` per micro-batch, and
which images, crops and flips it holds is a function of (seed, update, sample): see randomness.py. Where crops are
fixed, the VAE's posterior moments of every image are computed once and only re-sampled afterwards.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import IterableDataset

from dreamlab.randomness import Use, choice, generator

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
Moments = tuple[Tensor, Tensor]


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder in a fixed order; hidden files, captions and other junk are passed over."""
    return sorted(
        (path for path in folder.iterdir()
         if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()),
        key=lambda path: path.name,
    )  # fmt: skip


def read_photo(path: Path) -> Image.Image:
    """An upright RGB image: EXIF rotation applied, transparency composited on white; raises OSError if undecodable."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        if image.mode == "F" or image.mode.startswith("I"):  # a plain convert would clip, not scale
            image = _to_8_bit(image)
        return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit, 32-bit or float grey image as mode L; white is 65535 or, for floats, 1 or 255 if that is enough."""
    values = np.asarray(image, dtype=np.float32)
    peak = float(values.max())
    white = next((white for white in ((1, 255, 65535) if image.mode == "F" else (65535,)) if peak <= white), peak)
    return Image.fromarray(np.rint((values / white).clip(0, 1) * 255).astype(np.uint8))


def digest(paths: Sequence[Path]) -> str:
    """Hash of the files' content in order; a changed, added or reordered photo changes it."""
    state = hashlib.sha256()
    for path in paths:
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def crop(image: Image.Image, resolution: int, offset: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Tensor:
    """A square crop `(3, resolution, resolution)` in [-1, 1]; shorter side scaled to fit, `offset` in [0, 1]: x, y."""
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - resolution) * offset[0]), round((height - resolution) * offset[1])
    image = image.crop((left, top, left + resolution, top + resolution))
    if flip:
        image = ImageOps.mirror(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


@dataclass
class Batch:
    """One micro-batch of instance and prior samples; exactly one of `pixel_values` and `moments` is set."""

    input_ids: Tensor  # (B, L) int64
    is_prior: Tensor  # (B,) bool
    update: int  # which optimizer update this belongs to
    samples: list[int]  # (B,) index within the update, counted apart for instance and prior samples
    pixel_values: Tensor | None = None  # (B, 3, H, W) in [-1, 1]
    moments: Moments | None = None  # posterior mean and std, each (B, C, h, w)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        pixels = self.pixel_values.to(device) if self.pixel_values is not None else None
        moments = (self.moments[0].to(device), self.moments[1].to(device)) if self.moments else None
        return Batch(self.input_ids.to(device), self.is_prior.to(device), self.update, self.samples, pixels, moments)


class ImageSet:
    """The images of one half of the loss with their prompt's token ids; crops and flips drawn per sample."""

    def __init__(
        self, paths: Sequence[Path], input_ids: Tensor, resolution: int, random_crop: bool, flip: bool, is_prior: bool
    ) -> None:
        self.images = [read_photo(path) for path in paths]
        self.input_ids = input_ids  # (L,) int64
        self.resolution, self.random_crop, self.flip, self.is_prior = resolution, random_crop, flip, is_prior
        self._moments: dict[tuple[int, bool], Moments] = {}

    def cache(self, encode: Callable[[Tensor], Moments]) -> None:
        """Encode every image and its mirror once, with `encode`: pixels `(1, 3, H, W)` -> moments; fixed crops only."""
        if self.random_crop:
            return
        for index, image in enumerate(self.images):
            for flip in (False, True) if self.flip else (False,):
                mean, std = encode(crop(image, self.resolution, flip=flip)[None])
                self._moments[index, flip] = (mean[0].cpu(), std[0].cpu())

    def draw(self, seed: int, update: int, sample: int, position: int) -> Tensor | Moments:
        """One sample of one update: its cached moments `(C, h, w)`, or its pixels `(3, H, W)` in [-1, 1]."""
        index = choice(seed, position, len(self.images), self.is_prior)
        flip = self.flip and bool(generator(seed, Use.FLIP, update, sample, self.is_prior).integers(2))
        if (index, flip) in self._moments:
            return self._moments[index, flip]
        offset = (0.5, 0.5)
        if self.random_crop:
            x, y = generator(seed, Use.CROP, update, sample, self.is_prior).random(2)
            offset = (float(x), float(y))
        return crop(self.images[index], self.resolution, offset, flip)


class TrainingData(IterableDataset[Batch]):
    """The endless sequence of micro-batches from `first_update` on; a function of `seed` and nothing else."""

    def __init__(self, sets: Sequence[ImageSet], seed: int, batch_size: int, accumulate: int, first_update: int = 0):
        self.sets, self.seed = sets, seed
        self.batch_size, self.accumulate, self.first_update = batch_size, accumulate, first_update

    def __iter__(self) -> Iterator[Batch]:
        update = self.first_update
        while True:
            for micro in range(self.accumulate):
                yield self.batch(update, micro)
            update += 1

    def batch(self, update: int, micro: int) -> Batch:
        """Micro-batch `micro` of `update`: `batch_size` samples of each set."""
        samples = list(range(micro * self.batch_size, (micro + 1) * self.batch_size))
        per_update = self.batch_size * self.accumulate
        drawn: list[Tensor | Moments] = []
        ids, is_prior = [], []
        for images in self.sets:
            for sample in samples:
                drawn.append(images.draw(self.seed, update, sample, update * per_update + sample))
                ids.append(images.input_ids)
                is_prior.append(images.is_prior)
        batch = Batch(torch.stack(ids), torch.tensor(is_prior), update, samples * len(self.sets))
        pixels = [one for one in drawn if isinstance(one, Tensor)]
        moments = [one for one in drawn if not isinstance(one, Tensor)]
        if pixels:
            batch.pixel_values = torch.stack(pixels)
        else:
            batch.moments = (torch.stack([mean for mean, _ in moments]), torch.stack([std for _, std in moments]))
        return batch
