"""Labelled grids of samples."""

from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

LABEL_PX, GAP_PX, LINE_PX = 190, 2, 14


def grid(rows: dict[str, Tensor], columns: list[str], file: Path) -> None:
    """Writes one row of pictures (N, 3, H, W) per label, under the column labels if there are any."""
    side = next(iter(rows.values())).shape[-1] + GAP_PX
    top = LINE_PX if columns else 0
    width = LABEL_PX + side * max(len(x) for x in rows.values())
    sheet = Image.new("RGB", (width, top + side * len(rows)), "white")
    write = ImageDraw.Draw(sheet)
    for i, name in enumerate(columns):
        write.text((LABEL_PX + i * side + 2, 1), name, fill="black")
    for row, (label, x) in enumerate(rows.items()):
        write.text((4, top + row * side + side // 2 - 6), label, fill="black")
        for i, picture in enumerate((x.clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()):
            sheet.paste(Image.fromarray(picture), (LABEL_PX + i * side, top + row * side))
    sheet.save(file, quality=80)
