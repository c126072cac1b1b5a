"""Folders of photos as tensors, and the words that can be checked on pixels.

A word of a prompt can be *measured* when it names an exact transform of a photo ("a sepia photo of ...") or a colour
that fills the photo's border ("... on a green background"). This file holds both directions: the transform that
makes a training photo deserve the word, and the measurement that says whether a picture obeys it. Training and
measuring share these functions, so that a figure in the README means what the captions meant.

Every picture here is a float tensor (N, 3, H, W) in [0, 1].
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIZE_PX = 64
BORDER_PX = 5
TINTS = {
    "sepia": (1.00, 0.78, 0.50),
    "purple": (0.72, 0.36, 1.00),
    "blue": (0.30, 0.58, 1.00),
    "green": (0.38, 1.00, 0.42),
}
STYLES = {  # style -> the words before the noun
    "black and white": "a black and white photo of",
    "sepia": "a sepia photo of",
    "purple": "a purple tinted photo of",
    "blue": "a blue tinted photo of",
    "green": "a green tinted photo of",
    "blurry": "a blurry photo of",
    "upside down": "an upside down photo of",
    "pencil sketch": "a pencil sketch of",
}
BACKGROUNDS = ("white", "black", "gray", "green", "blue", "brown")


@dataclass
class Photos:
    """`pixels` (N, 3, 64, 64) uint8; `fine` and `cls` (N,) index `fine_names` and `class_words`."""

    pixels: Tensor
    fine: Tensor
    cls: Tensor
    fine_names: list[str]
    class_words: list[str]

    def to(self, device: torch.device) -> "Photos":
        """The same photos on another device."""
        moved = (t.to(device) for t in (self.pixels, self.fine, self.cls))
        return Photos(*moved, self.fine_names, self.class_words)

    def batch(self, index: Tensor) -> Tensor:
        """Photos `index` as (n, 3, 64, 64) floats in [0, 1]."""
        return self.pixels[index].float() / 255


def read(folder: Path, limit: int | None = None) -> Photos:
    """Photos of `folder/<class word>/<fine name>/*.jpg` in name order; at most `limit` of each fine name."""
    kinds = sorted(d for d in Path(folder).glob("*/*") if d.is_dir())
    if not kinds:
        raise SystemExit(f"No photos in {folder}: wanted {folder}/<class_word>/<fine_name>/*.jpg.")
    spoken = [(d.parent.name.replace("_", " "), d.name.replace("_", " ")) for d in kinds]
    class_words = sorted({word for word, _ in spoken})
    files = [(f, i) for i, d in enumerate(kinds) for f in sorted(d.glob("*.jpg"))[:limit]]
    with ThreadPoolExecutor(8) as pool:
        pixels = np.stack(list(pool.map(lambda pair: _open(pair[0]), files)))
    fine = torch.tensor([i for _, i in files])
    cls = torch.tensor([class_words.index(word) for word, _ in spoken])[fine]
    return Photos(torch.from_numpy(pixels), fine, cls, [name for _, name in spoken], class_words)


def _open(file: Path) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    if image.size != (SIZE_PX, SIZE_PX):
        image = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


# --- measurements -----------------------------------------------------------------------------------------------


def luma(x: Tensor) -> Tensor:
    """Rec. 601 brightness (N, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value, each (N, H, W); a gray pixel has hue 0."""
    value, top = x.max(1)
    spread = value - x.amin(1)
    r, g, b = x.unbind(1)
    safe = spread.clamp_min(1e-6)
    hue = torch.stack([(g - b) / safe, (b - r) / safe + 2, (r - g) / safe + 4], 1).gather(1, top[:, None])[:, 0]
    return torch.where(spread < 1e-6, 0.0, hue * 60 % 360), spread / value.clamp_min(1e-6), value


def chroma(x: Tensor) -> Tensor:
    """Mean of max(RGB) - min(RGB), (N,): 0 for a picture without colour."""
    return (x.amax(1) - x.amin(1)).mean((1, 2))


def sharpness(x: Tensor) -> Tensor:
    """Variance of the Laplacian of the brightness, relative to the brightness' own variance, (N,)."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    gray = luma(x)
    return F.conv2d(gray, kernel).var((1, 2, 3)) / gray.var((1, 2, 3)).clamp_min(1e-4)


def tintedness(x: Tensor, tint: str) -> Tensor:
    """Share of a picture's pixels, weighted by brightness, whose hue lies within 25 degrees of the tint's, (N,)."""
    target = hsv(x.new_tensor(TINTS[tint])[None, :, None, None])[0]
    hue, saturation, value = hsv(x)
    near = ((hue - target + 180) % 360 - 180).abs() < 25
    return (near & (saturation > 0.15)).float().mul(value).mean((1, 2)) / value.mean((1, 2)).clamp_min(1e-4)


def border_colours(x: Tensor) -> Tensor:
    """Share of the border's pixels that carry each of BACKGROUNDS, (N, len(BACKGROUNDS))."""
    frame = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    frame[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    hue, s, v = (channel[:, frame] for channel in hsv(x))
    plain = s < 0.2
    shares = {
        "white": (v > 0.8) & plain,
        "black": v < 0.2,
        "gray": (v >= 0.3) & (v <= 0.75) & plain,
        "green": (hue > 60) & (hue < 170) & (s > 0.2) & (v >= 0.2),
        "blue": (hue > 180) & (hue < 260) & (s > 0.2) & (v >= 0.2),
        "brown": (hue > 8) & (hue < 48) & (s > 0.25) & (v >= 0.2) & (v < 0.7),
    }
    return torch.stack([shares[name].float().mean(1) for name in BACKGROUNDS], 1)


def obeys_background(x: Tensor, colour: str) -> Tensor:
    """Whether most of the border carries the colour, (N,) bool."""
    return border_colours(x)[:, BACKGROUNDS.index(colour)] > 0.5


def obeys_style(x: Tensor, style: str) -> Tensor:
    """Whether a picture obeys a photometric style word, (N,) bool. "upside down" needs the classifier instead."""
    if style == "black and white":
        return chroma(x) < 0.04
    if style == "pencil sketch":
        return (chroma(x) < 0.06) & (luma(x).mean((1, 2, 3)) > 0.75)
    if style == "blurry":
        return sharpness(x) < 0.04
    return tintedness(x, style) > 0.85


# --- transforms -------------------------------------------------------------------------------------------------


def blur(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur with mirrored edges."""
    reach = int(3 * sigma_px + 0.5)
    line = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / (2 * sigma_px**2))
    line = (line / line.sum()).to(x.dtype).expand(x.shape[1], 1, -1)
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = F.conv2d(x, line[:, :, None], groups=x.shape[1])
    return F.conv2d(x, line[..., None], groups=x.shape[1])


def apply_style(x: Tensor, style: str) -> Tensor:
    """The transform that a style word stands for."""
    if style == "black and white":
        return luma(x).expand_as(x)
    if style == "blurry":
        return blur(x, 2.0)
    if style == "upside down":
        return x.rot90(2, (2, 3))
    if style == "pencil sketch":  # "colour dodge": lines stay where a pixel is darker than its surroundings
        gray = luma(x)
        return (gray / blur(gray, 2.0).clamp_min(0.05)).clamp(0, 1).expand_as(x)
    return (0.08 + 0.92 * luma(x)) * x.new_tensor(TINTS[style])[:, None, None]


def flip_and_shift(x: Tensor, most_px: int, generator: torch.Generator) -> Tensor:
    """Mirrors half of the pictures and moves each by up to `most_px` (edges mirrored)."""
    n, _, h, w = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1, generator=generator, device=x.device) < 0.5, x.flip(3), x)
    if not most_px:
        return x
    padded = F.pad(x, (most_px,) * 4, mode="reflect")
    dy, dx = torch.randint(0, 2 * most_px + 1, (2, n), generator=generator, device=x.device)
    rows = dy[:, None] + torch.arange(h, device=x.device)
    columns = dx[:, None] + torch.arange(w, device=x.device)
    which = torch.arange(n, device=x.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]]
    return picked.permute(0, 3, 1, 2).contiguous()
