"""Whether two pictures are the same photo, or two of one burst, and what all pictures have at one place.

A perceptual hash finds the pairs worth a look (Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010: the low frequencies of a DCT against their median). A small picture without its coarse brightness,
slid over the other at several zooms, then decides. Called by look.py and set_faults.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.fft import dctn

# Calibrated on the 90 pairs of photos within the eight subjects of tests/test_doctor.py, whose hashes differ in 18 bits
# or more, and on planted pairs: docs/photos.md has the numbers.
COPY_BITS = 10  # of 63: re-encoded, resized and brightened copies are below it
NEAR_BITS = 24  # chance alone gives 31.5 with a standard deviation of 4
NEAR_LIKENESS = 0.78
COMMON_MARKS = 0.35  # the likeness of one spot in all photos; 0.21 at most where there is no mark

_BASE_PX = 128
_SMALL_PX = 40
_ZOOMS = (1.0, 0.94, 0.88, 0.82, 0.76)
_INSET = 0.12  # of the slid picture's sides that may lie outside of the other
_SPOT_PX = 13  # of _BASE_PX
_FAINT = 16.0  # variance in squared grey levels below which a spot shows nothing


@dataclass(frozen=True)
class Fingerprint:
    """A picture as small as it can be and still be known again: (128, 128) grey levels, squeezed to a square."""

    grey: Image.Image

    @cached_property
    def bits(self) -> np.ndarray:
        """The perceptual hash: 63 booleans."""
        return _bits(self.grey)

    @cached_property
    def mirrored_bits(self) -> np.ndarray:
        """The same of the mirrored picture."""
        return _bits(ImageOps.mirror(self.grey))

    @cached_property
    def smalls(self) -> list[np.ndarray]:
        """The picture at every zoom, its coarse brightness taken away."""
        return [_small(self.grey, round(_SMALL_PX * zoom)) for zoom in _ZOOMS]


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of a picture of any size and shape."""
    return Fingerprint(image.resize((_BASE_PX, _BASE_PX), Image.Resampling.BOX).convert("L"))


def are_copies(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether both are one picture, however it was saved, brightened or mirrored."""
    if _apart(one.bits, other.bits) <= COPY_BITS:
        return likeness(one, other) >= NEAR_LIKENESS
    if _apart(one.mirrored_bits, other.bits) > COPY_BITS:
        return False
    return likeness(Fingerprint(ImageOps.mirror(one.grey)), other) >= NEAR_LIKENESS


def are_near(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether both are copies, or photos of one burst: shifted, turned or cropped by a little."""
    near = _apart(one.bits, other.bits) <= NEAR_BITS and likeness(one, other) >= NEAR_LIKENESS
    return near or are_copies(one, other)


def likeness(one: Fingerprint, other: Fingerprint) -> float:
    """The best correlation, at most 1, of either slid over the other at every zoom."""
    slid = [(small, other.smalls[0]) for small in one.smalls] + [(small, one.smalls[0]) for small in other.smalls[1:]]
    return max(_slide(small, over) for small, over in slid)


def alike(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of two or more that are near to one another, directly or through others."""
    group = list(range(len(fingerprints)))
    for i, j in combinations(range(len(fingerprints)), 2):
        if group[i] != group[j] and are_near(fingerprints[i], fingerprints[j]):
            joined, left = group[i], group[j]
            group = [joined if number == left else number for number in group]
    members = [[i for i, number in enumerate(group) if number == which] for which in dict.fromkeys(group)]
    return [some for some in members if len(some) > 1]


def common_spot(fingerprints: Sequence[Fingerprint]) -> tuple[float, tuple[float, float]]:
    """How alike the most alike spot of all pictures is, and where its middle lies (0 to 1: x, y)."""
    planes = [_without_coarse(np.asarray(one.grey, np.float32), 3.0) for one in fingerprints]
    least = np.ones((_BASE_PX, _BASE_PX), np.float32)
    for one, other in combinations(planes, 2):
        least = np.minimum(least, _local_correlation(one, other))
    y, x = np.unravel_index(int(least.argmax()), least.shape)
    return float(least.max()), (float(x) / _BASE_PX, float(y) / _BASE_PX)


def _bits(grey: Image.Image) -> np.ndarray:
    small = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), np.float32)
    low = dctn(small, norm="ortho")[:8, :8].ravel()[1:]
    return low > np.median(low)


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    return int((one != other).sum())


def _small(grey: Image.Image, side: int) -> np.ndarray:
    values = np.asarray(grey.resize((2 * side, 2 * side), Image.Resampling.LANCZOS), np.float32)
    values = _without_coarse(ndimage.gaussian_filter(values, 1.0), 6.0)
    return values.reshape(side, 2, side, 2).mean((1, 3))


def _without_coarse(values: np.ndarray, sigma: float) -> np.ndarray:
    return values - ndimage.gaussian_filter(values, sigma)


def _slide(small: np.ndarray, over: np.ndarray) -> float:
    """The best normalised correlation of the middle of `small` with any place of `over`."""
    inset = round(len(small) * _INSET)
    middle = small[inset:-inset, inset:-inset]
    middle = middle - middle.mean()
    side, length = len(middle), float(np.sqrt((middle**2).sum()))
    windows = np.lib.stride_tricks.sliding_window_view(over, middle.shape)
    spread = (windows**2).sum((2, 3)) - windows.sum((2, 3)) ** 2 / side**2
    lengths = np.sqrt(np.maximum(spread, 1.0))  # a featureless place is like nothing
    return float((np.tensordot(windows, middle, ((2, 3), (0, 1))) / (lengths * max(length, 1.0))).max())


def _local_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, _SPOT_PX)

    of_one, of_other = mean(one), mean(other)
    spread_one, spread_other = mean(one * one) - of_one**2, mean(other * other) - of_other**2
    both = mean(one * other) - of_one * of_other
    return both / np.sqrt(np.maximum(spread_one, _FAINT) * np.maximum(spread_other, _FAINT))
