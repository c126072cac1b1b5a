"""Thumbnails: pictures small enough to stand inside a page by the hundred, as WebP in data URIs."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

QUALITY = 75


def shrunk(path: Path, side_px: int) -> Image.Image | None:
    """The picture with its longer side at most `side_px`, None where there is no readable one."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return image


def thumbnail(path: Path, side_px: int) -> str | None:
    """The same as a data URI."""
    image = shrunk(path, side_px)
    if image is None:
        return None
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnails(paths: Sequence[Path], side_px: int) -> list[str | None]:
    """The same for many, on all cores: Pillow decodes and encodes beside Python."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: thumbnail(path, side_px), paths))
