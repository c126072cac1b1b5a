"""LPIPS (arXiv 1801.03924), the distance of DIV: an optional package, since it brings torchvision with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamlab.errors import UserError

NET = "alex"  # LPIPS's own default, closest to people's judgement in its paper


def lpips_distances(images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """LPIPS between all pairs of images of one size: `(N, N)` float32, symmetric, zero on the diagonal.

    UserError without the package; `metrics.distances` of features takes its place where an exact LPIPS isn't needed.
    """
    try:
        import lpips
    except ImportError:
        raise UserError(
            "LPIPS needs the package lpips: pip install 'dreamlab[lpips]'. Or measure diversity with DINO's features."
        ) from None
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise UserError(f"LPIPS compares images of one size; these have {len(sizes)}. Bring them to one resolution.")
    net: Any = lpips.LPIPS(net=NET, verbose=False).to(device).eval()
    pixels = torch.stack([_pixels(image) for image in images]).to(device)
    apart = torch.zeros(len(images), len(images))
    with torch.no_grad():
        for i in range(len(images) - 1):
            others = pixels[i + 1 :]
            apart[i, i + 1 :] = net(pixels[i : i + 1].expand_as(others), others).flatten().float().cpu()
    return apart + apart.T


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1], as LPIPS takes them."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
