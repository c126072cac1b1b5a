"""Pictures: PNG files that carry the settings that made them, and labelled grids to look at."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dreamlab.runs import written_whole


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG whose `dreamlab` chunk holds `settings` as JSON; `parameters` repeats them for A1111's reader."""
    info = PngInfo()
    info.add_itxt("dreamlab", json.dumps(dict(settings), ensure_ascii=False))
    shown = ", ".join(f"{key}: {value}" for key, value in settings.items() if key not in ("prompt", "negative_prompt"))
    negative = settings.get("negative_prompt")
    lines = [str(settings.get("prompt", "")), *([f"Negative prompt: {negative}"] if negative else []), shown]
    info.add_itxt("parameters", "\n".join(lines))
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def save_picture(image: Image.Image, path: Path, settings: Mapping[str, Any], jpeg_quality: int | None) -> None:
    """Write a PNG or, at a quality of 1 to 100, a JPEG whose comment holds `settings`."""
    if jpeg_quality is None:
        return save_png(image, path, settings)
    with written_whole(path) as temporary:
        image.save(temporary, format="JPEG", quality=jpeg_quality, comment=json.dumps(dict(settings)))


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
    font = ImageFont.load_default(12)
    left, gap, line = 76, 6, 15
    titles = [textwrap.wrap(title, max(8, tile_px // 7)) for title in columns]
    top = line * max((len(title) for title in titles), default=0) + 2 * gap
    width = left + len(columns) * (tile_px + gap)
    sheet = Image.new("RGB", (width, top + len(rows) * (tile_px + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((left + column * (tile_px + gap), gap), "\n".join(title), fill="black", font=font)
    for row, (label, images) in enumerate(rows):
        y = top + row * (tile_px + gap)
        pen.text((gap, y + gap), "\n".join(textwrap.wrap(label, 10)), fill="black", font=font)
        for column, image in enumerate(images[: len(columns)]):
            scale = tile_px / max(image.size)
            small = image.resize(
                (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
            )
            sheet.paste(small, (left + column * (tile_px + gap), y))
    return sheet
