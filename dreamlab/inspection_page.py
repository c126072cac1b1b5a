"""The page of the dataset doctor: the verdict, the remarks, and each photo beside the crop that the model will see.

One file that asks for nothing else, as the other pages (html.py). Called by inspect.py.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreamlab.doctor import Case, Diagnosis
from dreamlab.html import render, write_html
from dreamlab.look import Look, crop_shape
from dreamlab.photos import Region, crop, read_photo
from dreamlab.pictures import as_picture
from dreamlab.remarks import printable

SIDE_PX = 224
QUALITY = 80


@dataclass(frozen=True)
class Shown:
    """A photo on the page."""

    name: str
    size: str
    about: str
    photo: str  # data URI
    crop: str
    crop_size: str
    remarks: list[tuple[str, str]]  # badge, what is wrong


def write_inspection(path: Path, name: str, diagnoses: Sequence[Diagnosis]) -> None:
    """Write the page of all subjects into one file."""
    with ThreadPoolExecutor() as pool:
        subjects = [
            (diagnosis, list(pool.map(lambda look, one=diagnosis: _shown(one, look), diagnosis.looks)))
            for diagnosis in diagnoses
        ]
    write_html(path, render("inspect.html", name=printable(name), subjects=subjects))


def _shown(diagnosis: Diagnosis, look: Look) -> Shown:
    case = diagnosis.case
    image = read_photo(look.path, case.loading)  # whole, as training reads it
    pixels = _crop(image, case)
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    facts = [f"the crop leaves out {look.cut_away:.0%}" if look.cut_away >= 0.005 else "nothing is cut away"]
    facts += [f"edges {look.blur_px:.2f} px wide"] if look.blur_px is not None else []
    return Shown(
        printable(look.path.name), f"{look.size[0]} x {look.size[1]} px", ", ".join(facts), _uri(image),
        _uri(_enlarged(pixels)), f"{pixels.width} x {pixels.height} px", diagnosis.about(look.path),
    )  # fmt: skip


def _crop(image: Image.Image, case: Case) -> Image.Image:
    """What the model gets of a photo whose crop lies in the middle."""
    height, width = crop_shape(image.size, case.side_px, case.bucket_step)
    return as_picture(crop(image, Region(height, width), case.loading.resample))


def _enlarged(image: Image.Image) -> Image.Image:
    """The crop at the page's size; a small one keeps its pixels, so that they can be seen."""
    scale = SIDE_PX / max(image.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
