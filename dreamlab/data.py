"""Photos and class images as training samples.

`TrainingData` yields one `Batch` per micro-batch, and which images, crops and flips it holds is a function of
(seed, update, sample): see randomness.py. Where crops are fixed, the VAE's posterior moments of every crop are computed
once and only re-sampled afterwards. Called by assemble.py; pixels come from photos.py.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import IterableDataset

from dreamlab.photos import UPRIGHT, Loading, Region, bucket, crop, micro_conditioning, read_mask, read_photo
from dreamlab.randomness import Use, choice, generator, permutation

Moments = tuple[Tensor, Tensor]
Shape = tuple[int, int]  # height and width, in pixels


@dataclass
class Batch:
    """One micro-batch of instance and prior samples; exactly one of `pixel_values` and `moments` is set."""

    input_ids: Tensor  # (B, L) int64
    is_prior: Tensor  # (B,) bool
    update: int  # which optimizer update this belongs to
    samples: list[int]  # (B,) index within the update, counted apart for instance and prior samples
    pixel_values: Tensor | None = None  # (B, 3, H, W) in [-1, 1]
    moments: Moments | None = None  # posterior mean and std, each (B, C, h, w)
    mask: Tensor | None = None  # (B, 1, h, w) weights of the loss in [0, 1]; None: 1 everywhere
    sizes: Tensor | None = None  # (B, 6) int64: photos.micro_conditioning of each picture
    teacher: Tensor | None = None  # (P, C, h, w) what the P prior samples are to match instead of their noise

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        if self.moments:
            moved["moments"] = (self.moments[0].to(device), self.moments[1].to(device))
        return replace(self, **moved)


class Item(NamedTuple):
    """One picture: its file, its prompt's token ids `(L,)` with how many of them are words, and its mask's file."""

    path: Path
    input_ids: Tensor
    num_tokens: int
    mask: Path | None = None  # the picture's own file: its transparency


@dataclass(frozen=True)
class Crops:
    """How samples are cut out of pictures."""

    resolution: int  # pixels
    is_random: bool = False
    fixed: int = 0  # of random crops: 0 draws each anew, n draws n per picture once
    flip: bool = False
    bucket_step: int | None = None  # pixels; None: every crop is square
    unmasked_weight: float = 0.0
    loading: Loading = UPRIGHT


READERS = 4  # threads, which decoding doesn't keep from running


class ImageSet:
    """The images of one half of the loss."""

    def __init__(self, items: Sequence[Item], crops: Crops, is_prior: bool) -> None:
        self.items, self.crops, self.is_prior = items, crops, is_prior
        self._images: dict[int, Image.Image] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._moments: dict[tuple[int, Region], Moments] = {}

    def image(self, index: int) -> Image.Image:
        """The decoded picture, kept in memory."""
        if index not in self._images:
            self._images[index] = read_photo(self.items[index].path, self.crops.loading)
            self._sizes[index] = self._images[index].size
        return self._images[index]

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a picture, remembered when its pixels are not."""
        if index not in self._sizes:
            self.image(index)
        return self._sizes[index]

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shape that each picture is cut to by itself."""
        side, step = self.crops.resolution, self.crops.bucket_step
        with ThreadPoolExecutor(READERS) as pool:
            sizes = pool.map(self.size, range(len(self.items)))
        return [bucket(size, side, step) if step else (side, side) for size in sizes]

    def region(self, seed: int, update: int, sample: int, index: int, shape: Shape) -> Region:
        """The crop of one sample of one update."""
        flip = self.crops.flip and bool(generator(seed, Use.FLIP, update, sample, self.is_prior).integers(2))
        if not self.crops.is_random:
            return Region(*shape, flip=flip)
        stream = generator(seed, Use.CROP, update, sample, self.is_prior)
        if self.crops.fixed:
            stream = generator(seed, Use.FIXED_CROP, index, int(stream.integers(self.crops.fixed)), self.is_prior)
        x, y = stream.random(2)
        return Region(*shape, (float(x), float(y)), flip)

    def cache(self, encode: Callable[[Path, Region, Tensor], Moments], seed: int, shapes: Sequence[Shape]) -> None:
        """Encode once every crop that training can ask for, `encode(path, region, pixels (1, 3, H, W))`."""
        if self.crops.is_random and not self.crops.fixed:
            return
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(self.image, range(len(self.items))))
        for index, item in enumerate(self.items):
            for shape in [self.shapes[index]] if not self.is_prior else dict.fromkeys(shapes):
                for region in self._regions(seed, index, shape):
                    mean, std = encode(item.path, region, self.pixels(index, region)[None])
                    self._moments[index, region] = (mean[0].cpu(), std[0].cpu())
        self._images.clear()

    def _regions(self, seed: int, index: int, shape: Shape) -> Iterator[Region]:
        for flip in (False, True) if self.crops.flip else (False,):
            if not self.crops.is_random:
                yield Region(*shape, flip=flip)
            for number in range(self.crops.fixed if self.crops.is_random else 0):
                x, y = generator(seed, Use.FIXED_CROP, index, number, self.is_prior).random(2)
                yield Region(*shape, (float(x), float(y)), flip)

    def pixels(self, index: int, region: Region) -> Tensor:
        """A crop `(3, H, W)` in [-1, 1]."""
        return crop(self.image(index), region, self.crops.loading.resample) * 2 - 1

    def picture(self, index: int, region: Region) -> Tensor | Moments:
        """A crop's cached moments, each `(C, h, w)`, or its pixels `(3, H, W)`."""
        known = self._moments.get((index, region))
        return self.pixels(index, region) if known is None else known

    def mask(self, index: int, region: Region, latent_shape: Shape) -> Tensor:
        """Weights of the loss `(1, h, w)`, the mean of the mask's pixels over each latent."""
        item = self.items[index]
        if item.mask is None:
            return torch.ones(1, *latent_shape)
        image = read_mask(item.mask, self.crops.loading, is_alpha=item.mask == item.path)
        small = interpolate(crop(image, region, self.crops.loading.resample)[None], latent_shape, mode="area")[0]
        return self.crops.unmasked_weight + (1 - self.crops.unmasked_weight) * small


class TrainingData(IterableDataset[Batch]):
    """The endless sequence of this process's micro-batches from `first_update` on; a function of `seed`."""

    def __init__(
        self, sets: Sequence[ImageSet], seed: int, batch_size: int, accumulate: int, first_update: int = 0, *,
        rank: int = 0, world_size: int = 1, latent_factor: int = 8, trim: bool = False, paired: bool = False,
        teacher: Callable[[int, list[int]], Tensor] | None = None,
    ):  # fmt: skip
        self.sets, self.seed, self.first_update = sets, seed, first_update
        self.batch_size, self.accumulate, self.rank, self.world_size = batch_size, accumulate, rank, world_size
        self.latent_factor = latent_factor  # pixels of a latent's side
        self.trim, self.paired = trim, paired  # quirks: prompts padded to the batch's longest; class image by number
        self.teacher = teacher  # (update, samples) -> what those prior samples are to match
        self._orders: dict[int, list[int]] = {}

    @property
    def per_update(self) -> int:
        """Instance samples of an update, over all its micro-batches and processes."""
        return self.batch_size * self.accumulate * self.world_size

    def __iter__(self) -> Iterator[Batch]:
        update = self.first_update
        while True:
            for micro in range(self.accumulate):
                yield self.batch(update, micro)
            update += 1

    def visit(self, update: int) -> tuple[Shape, list[int], int]:
        """The shape of an update's crops, the photos that have it, and how many updates had it before.

        A pass of as many updates as there are photos gives each photo's shape one update, in an order of its own.
        """
        shapes = self.sets[0].shapes
        if len(set(shapes)) == 1:
            return shapes[0], list(range(len(shapes))), update
        passes, place = divmod(update, len(shapes))
        if passes not in self._orders:
            self._orders = {passes: permutation(self.seed, Use.BUCKET, passes, len(shapes))}
        order = self._orders[passes]
        shape = shapes[order[place]]
        members = [index for index, other in enumerate(shapes) if other == shape]
        before = sum(shapes[index] == shape for index in order[:place])
        return shape, members, passes * len(members) + before

    def batch(self, update: int, micro: int) -> Batch:
        """Micro-batch `micro` of `update`: `batch_size` samples of each set, cut to the update's shape."""
        first = (micro * self.world_size + self.rank) * self.batch_size
        samples = list(range(first, first + self.batch_size))
        shape, members, visits = self.visit(update)
        photos = [members[choice(self.seed, visits * self.per_update + s, len(members))] for s in samples]
        picked = [(self.sets[0], index) for index in photos]
        for images in self.sets[1:]:
            size, positions = len(images.items), [update * self.per_update + s for s in samples]
            drawn = [choice(self.seed, position, size, images.is_prior) for position in positions]
            picked += [(images, index) for index in ([i % size for i in photos] if self.paired else drawn)]
        regions = [
            images.region(self.seed, update, sample, index, shape)
            for (images, index), sample in zip(picked, samples * len(self.sets), strict=True)
        ]
        return self._stacked(update, samples, picked, regions)

    def _stacked(
        self, update: int, samples: list[int], picked: list[tuple[ImageSet, int]], regions: list[Region]
    ) -> Batch:
        items = [images.items[index] for images, index in picked]
        ids = torch.stack([item.input_ids for item in items])
        if self.trim:
            ids = ids[:, : max(item.num_tokens for item in items)]
        is_prior = torch.tensor([images.is_prior for images, _ in picked])
        cuts = list(zip(picked, regions, strict=True))
        sizes = torch.tensor([micro_conditioning(images.size(index), region) for (images, index), region in cuts])
        batch = Batch(ids, is_prior, update, samples * len(self.sets), sizes=sizes)
        drawn = [images.picture(index, region) for (images, index), region in cuts]
        pixels = [one for one in drawn if isinstance(one, Tensor)]
        moments = [one for one in drawn if not isinstance(one, Tensor)]
        if pixels:
            batch.pixel_values = torch.stack(pixels)
        else:
            batch.moments = (torch.stack([mean for mean, _ in moments]), torch.stack([std for _, std in moments]))
        if any(item.mask for images in self.sets for item in images.items):
            side = (regions[0].height // self.latent_factor, regions[0].width // self.latent_factor)
            masks = [images.mask(index, region, side) for (images, index), region in cuts]
            batch.mask = torch.stack(masks)
        if self.teacher and is_prior.any():
            batch.teacher = self.teacher(update, samples)
        return batch
