"""Pictures: PNG files that carry the settings that made them, and labelled grids to look at."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dreamlab.off_gpu import off_gpu
from dreamlab.runs import written_whole

if TYPE_CHECKING:
    from torch import Tensor

WRITERS = 4  # threads that compress pictures while the next ones are drawn
FAST = 3  # of PNG's 9 levels: photos get 1-6% larger than with the usual 6, in 40% of the time


def as_pictures(pixels: "Tensor") -> list[Image.Image]:
    """Pixels `(B, 3, H, W)` of 0 to 1 as pictures of 8 bits; rounded and laid out before they leave a GPU."""
    whole = (pixels.float() * 255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(one) for one in off_gpu(whole).numpy()]


def as_picture(pixels: "Tensor") -> Image.Image:
    """Pixels `(3, H, W)` likewise."""
    return as_pictures(pixels[None])[0]


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG whose `dreamlab` chunk holds `settings` as JSON; `parameters` repeats them for A1111's reader."""
    info = PngInfo()
    info.add_itxt("dreamlab", json.dumps(dict(settings), ensure_ascii=False))
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items() if key not in ("prompt", "negative_prompt"))
    negative = settings.get("negative_prompt")
    lines = [str(settings.get("prompt", "")), *([f"Negative prompt: {negative}"] if negative else []), shown]
    info.add_itxt("parameters", "\n".join(lines))
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info, compress_level=FAST)


def save_picture(image: Image.Image, path: Path, settings: Mapping[str, Any], jpeg_quality: int | None) -> None:
    """Write a PNG or, at a quality of 1 to 100, a JPEG whose comment holds `settings`."""
    if jpeg_quality is None:
        return save_png(image, path, settings)
    with written_whole(path) as temporary:
        image.save(temporary, format="JPEG", quality=jpeg_quality, comment=json.dumps(dict(settings)))


@contextmanager
def written_beside() -> Iterator[Callable[..., None]]:
    """`write(save, *args)`, which leaves `save(*args)` to a thread; when the block ends, all is written or raises."""
    kept: list[Future[None]] = []
    with ThreadPoolExecutor(WRITERS) as pool:
        yield lambda save, *args: kept.append(pool.submit(save, *args))
    for one in kept:
        one.result()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_picture` put into a file, empty where there are none."""
    with Image.open(path) as image:
        text = image.info.get("dreamlab") or image.info.get("comment", b"{}")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], tile_px: int = 160) -> Image.Image:
    """Rows of images under column titles, each row behind its label; a row may be shorter than the titles."""
    font, gap, line = ImageFont.load_default(12), 6, 15
    titles = [_wrapped(title, font, tile_px - gap) for title in columns]
    widest = max((font.getlength(text) for label, _ in rows for text in label.splitlines()), default=0)
    room = max(64, min(math.ceil(widest), tile_px))  # for the labels
    labels = [_wrapped(label, font, room) for label, _ in rows]
    tiles = [[_scaled(image, tile_px) for image in images[: len(columns)]] for _, images in rows]
    heights = [
        max(line * len(label), *(tile.height for tile in row), 0) + gap
        for label, row in zip(labels, tiles, strict=True)
    ]
    left, top = room + 2 * gap, line * max(map(len, titles), default=0) + 2 * gap
    sheet = Image.new("RGB", (left + len(columns) * (tile_px + gap), top + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((left + column * (tile_px + gap), gap), "\n".join(title), fill="black", font=font)
    y = top
    for label, row, height in zip(labels, tiles, heights, strict=True):
        pen.text((gap, y), "\n".join(label), fill="black", font=font)
        for column, tile in enumerate(row):
            sheet.paste(tile, (left + column * (tile_px + gap), y))
        y += height
    return sheet


def _scaled(image: Image.Image, side_px: int) -> Image.Image:
    """The image with its longer side at `side_px`."""
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any, width_px: int) -> list[str]:
    """The text in lines no wider than `width_px`, broken between words or, where one is too long, inside it."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= width_px:
                lines[-1] = longer
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if font.getlength(lines[-1] + letter) > width_px:
                    lines.append("")
                lines[-1] += letter
    return lines
