"""Random views of photos, for encoders that shall see past framing, light and small covers, but not past the words.

Every picture here is a float tensor (N, 3, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F
from photos import apply_style, blur
from torch import Tensor

from dreamlab.words import STYLES, border_colours, luma

STYLED_SHARE, CLEAR_SHARE, SAID_SHARE = 0.45, 0.6, 0.5


def view(x: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """A random part of each photo, of `least` to all of its area, recoloured a little, sometimes blurred or hidden."""
    n, device = len(x), x.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    side, stretch = draw(least, 1).sqrt(), draw(-0.2, 0.2).exp()
    width, height = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
    mirror = 1 - 2 * (draw(0, 1) < 0.5).float()
    zero = torch.zeros(n, device=device)
    rows = [width * mirror, zero, draw(-1, 1) * (1 - width), zero, height, draw(-1, 1) * (1 - height)]
    turn = torch.stack(rows, 1).view(n, 2, 3)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = torch.where((draw(0, 1) < 0.15)[:, None, None, None], blur(x, 0.8), x)
    x = luma(x) + (x - luma(x)) * draw(0.75, 1.25)[:, None, None, None]
    return ((x - 0.5) * draw(0.75, 1.25)[:, None, None, None] + 0.5 + draw(-0.1, 0.1)[:, None, None, None]).clamp(0, 1)


def hide(x: Tensor, generator: torch.Generator) -> Tensor:
    """Covers a rectangle of most pictures with gray."""
    line = torch.arange(x.shape[2], device=x.device)
    top, left, tall, wide = torch.randint(-8, 64, (4, len(x), 1), generator=generator, device=x.device)
    rows = (line >= top) & (line < top + tall % 28)
    columns = (line >= left) & (line < left + wide % 28)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.5, x)


def styled_views(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Views of which some get a style; and what the caption shall say: 0 nothing, then STYLES, then BACKGROUNDS."""
    share, colour = border_colours(x).max(1)
    chance = torch.rand(2, len(x), generator=generator, device=x.device)
    says = (share > CLEAR_SHARE) & (chance[0] < SAID_SHARE)
    condition = torch.where(says, 1 + len(STYLES) + colour, 0)
    each = int(len(x) * STYLED_SHARE / len(STYLES))
    x = x.clone()
    for i, style in enumerate(STYLES):  # photos come in random order, so slices are random photos
        part = slice(i * each, (i + 1) * each)
        x[part], condition[part] = apply_style(x[part], style), 1 + i
    return x, condition
