"""Folders of photos as tensors, and the transforms that make a photo deserve a word of its caption.

A word of a prompt can be *measured* when it names an exact transform of a photo ("a sepia photo of ...") or a colour
that fills the photo's border ("... on a green background"). The transforms are here, the measurements that say
whether a picture obeys in `dreamlab.words`: a figure in the README means what the captions meant.

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

from dreamlab.words import TINTS, luma

SIZE_PX = 64


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
