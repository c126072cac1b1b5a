"""The demo's subject: Chelsea, a tabby cat, in eight square crops of one photo.

The photo (451 x 300 px) comes inside the scikit-image package, so the demo needs no network and carries no pictures
of its own. Crops of ONE photo are enough to show how a subject is learnt, and a poor set for real work: the pose, the
light and the background never change, so the model learns those as part of the cat. Give your own subject three or
more different photos. The train command calls this when `instance_dir=demo`.
"""

from pathlib import Path

from PIL import Image

from dreamlab.errors import UserError
from dreamlab.runs import cache_dir, written_whole
from dreamlab.turns import one_at_a_time

# File: (left, top, side) in px. Every crop holds both eyes, the nose and the striped forehead, by which this cat is
# known at 64 px; scale and place differ a little, so that the face isn't tied to fixed pixels.
CROPS = {
    "chelsea-1.png": (70, 0, 300),
    "chelsea-2.png": (100, 0, 300),
    "chelsea-3.png": (130, 0, 300),
    "chelsea-4.png": (85, 20, 280),
    "chelsea-5.png": (112, 8, 285),
    "chelsea-6.png": (100, 10, 270),
    "chelsea-7.png": (118, 30, 262),
    "chelsea-8.png": (112, 46, 250),
}

LICENCE = """\
These pictures are crops of "Chelsea", a photo by Stéfan van der Walt, given to the public domain under CC0 1.0
(https://creativecommons.org/publicdomain/zero/1.0/). Source: skimage.data.chelsea() of scikit-image.
"""


def demo_photos(folder: Path | None = None) -> Path:
    """The demo's photos in `folder`, which appears whole or not at all and is used again when it is there.

    `folder` defaults to `demo` below the cache folder. Raises UserError when scikit-image is missing or when
    `folder` holds something else.
    """
    folder = folder or cache_dir(None) / "demo"
    if not _is_there(folder):
        with one_at_a_time(folder.parent):  # not in the folder itself, which is put there whole
            if not _is_there(folder):
                _make(folder)
    return folder


def _is_there(folder: Path) -> bool:
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not all((folder / name).is_file() for name in CROPS):
        raise UserError(f"{folder} holds something other than the demo's photos: move it away and try again.")
    return True


def _make(folder: Path) -> None:
    photo = _chelsea()
    with written_whole(folder) as new:
        new.mkdir()
        for name, (left, top, side) in CROPS.items():
            photo.crop((left, top, left + side, top + side)).save(new / name)
        (new / "LICENSE.txt").write_text(LICENCE, encoding="utf-8")


def _chelsea() -> Image.Image:
    """The whole photo, RGB."""
    try:
        from skimage import data
    except ImportError as error:
        raise UserError(
            "The demo's photo of a cat comes with scikit-image, which is not installed. "
            'Install it with `pip install "dreamlab[demo]"`, or name your own photos: instance_dir=<folder>.'
        ) from error
    return Image.fromarray(data.chelsea()).convert("RGB")
