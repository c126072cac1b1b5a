"""How sharp a picture is, and what its compression did to it: numbers of pixels alone.

Blur is told in pixels by the re-blur method (Zhuo & Sim, "Defocus map estimation from a single image", 2011): blurring
an edge of width σ once more, by σ₀, lowers its gradient by a factor R, so σ = σ₀ / sqrt(R² - 1). It doesn't depend on
what the picture shows, as the variance of its Laplacian does: that is 100 to 4000 over the paper's own photos, and 10
to 150 over the same photos blurred by 1 px. Called by look.py.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

Grey = np.ndarray  # (H, W) float32 in 0-255

_LUMA = np.array([  # the luminance table of the JPEG standard (ITU-T T.81, K.1), which qualities scale
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def _sum_at(quality: int) -> int:
    """The sum of the table that the IJG's library saves with at a quality, by its own rounding."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return int(((_LUMA * scale + 50) // 100).clip(1, 255).sum())


_SUMS = np.array([_sum_at(quality) for quality in range(1, 101)])
_REBLUR_PX = 1.0  # σ₀
_DIRECTIONS = 4
_ENOUGH_EDGES = 12  # in a direction, for a percentile to mean anything
_MIN_GRADIENT = 1.5  # grey levels per pixel: below it there is noise


def edge_blur_px(grey: Grey) -> float | None:
    """σ of the sharpest edges in the direction where they are least sharp; None where there are too few edges.

    The sharpest, so that a blurred background is no fault; by direction, since motion blurs edges across it alone.
    """
    if min(grey.shape) < 2:
        return None
    smooth = ndimage.gaussian_filter(grey, 0.5)  # tames noise and the ringing of sharpened photos
    down, right = np.gradient(smooth)
    steep = np.hypot(down, right)
    again = np.hypot(*np.gradient(ndimage.gaussian_filter(smooth, _REBLUR_PX)))
    is_edge = (steep >= max(np.percentile(steep, 90), _MIN_GRADIENT)) & (steep == ndimage.maximum_filter(steep, 3))
    factor = (steep / np.maximum(again, 1e-6))[is_edge]
    step = np.pi / _DIRECTIONS
    direction = np.rint(np.arctan2(down, right)[is_edge] / step).astype(int) % _DIRECTIONS
    parts = [factor[direction == number] for number in range(_DIRECTIONS)]
    judged = [part for part in parts if len(part) >= _ENOUGH_EDGES] or [factor] * (len(factor) >= _ENOUGH_EDGES)
    if not judged:
        return None
    least = min(float(np.percentile(part, 90)) for part in judged)
    return float(_REBLUR_PX / np.sqrt(max(least**2 - 1, 0.01)))


def jpeg_quality(image: Image.Image) -> int | None:
    """The quality, 1 to 100, that a JPEG was saved with, by its quantisation table; None for other formats.

    `image` as it was opened. The scale is that of the IJG's library; other programs' tables get the nearest.
    """
    tables = getattr(image, "quantization", None)
    if image.format not in ("JPEG", "MPO") or not tables or len(tables[0]) != len(_LUMA):
        return None
    return int(np.abs(_SUMS - sum(tables[0])).argmin()) + 1  # sums, whose order doesn't matter


def blockiness(grey: Grey) -> float:
    """How much larger steps between pixels are at an 8-pixel grid, wherever it begins, than elsewhere; 1: no grid.

    In the file's own pixels: resizing takes the grid away. Finds what an earlier, stronger compression left behind.
    """
    found = []
    for steps in (np.abs(np.diff(grey, axis=1)).mean(0), np.abs(np.diff(grey, axis=0)).mean(1)):
        phases = np.array([np.median(steps[phase::8]) for phase in range(8)])
        found.append(phases.max() / max(float(np.median(phases)), 1e-3))
    return float(min(found))
