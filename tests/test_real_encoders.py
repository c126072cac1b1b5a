"""The paper's own yardstick: how alike real photos of a subject are to each other, by DINO and by CLIP-I.

Table 1 of arXiv 2208.12242 gives 0.774 and 0.885 for its 30 subjects. That test needs what can't be in the repository
and is skipped without it: `DREAMLAB_DINO`, `DREAMLAB_CLIP` (folders of facebook/dino-vits16 and
openai/clip-vit-base-patch32) and `DREAMLAB_DREAMBOOTH` (the dataset's folder, with a folder of photos per subject).
"""

import os
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from conftest import noise_picture
from PIL import Image

from dreamlab import encoders
from dreamlab.evaluation import Judge, Photos
from dreamlab.metrics import cosine, distances
from dreamlab.photos import Region, crop, list_images, read_photo

SIDE_PX = 512  # as samples of Stable Diffusion are


def read(path: Path, side_px: int) -> Image.Image:
    pixels = crop(read_photo(path), Region(side_px, side_px))
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())


def likeness(encoder: encoders.Encoder, subjects: list[list[Image.Image]]) -> float:
    """The mean over subjects of the mean over pairs of different photos of one."""
    found = []
    for pictures in subjects:
        apart = distances(encoder.images(pictures))
        found.append(float((1 - apart[~torch.eye(len(apart), dtype=torch.bool)]).mean()))
    return mean(found)


def subjects_of(folder: Path, side_px: int = SIDE_PX) -> list[list[Image.Image]]:
    """The photos of every subject of the dataset, or of a part of it."""
    photos = [list_images(subject) for subject in sorted(folder.iterdir()) if subject.is_dir()]
    return [[read(path, side_px) for path in paths] for paths in photos if paths]


def folder_in(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"needs {variable}")
    folder = Path(os.environ[variable]).expanduser()
    if not folder.is_dir():
        pytest.skip(f"{variable} is no folder")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "published"), [("DREAMLAB_DINO", 0.774), ("DREAMLAB_CLIP", 0.885)])
def test_real_photos_are_as_alike_as_published(variable: str, published: float) -> None:
    encoder, subjects = encoders.load(str(folder_in(variable))), subjects_of(folder_in("DREAMLAB_DREAMBOOTH"))
    if len(subjects) != 30:
        pytest.skip(f"DREAMLAB_DREAMBOOTH holds {len(subjects)} subjects, and the paper's numbers are of 30")
    assert likeness(encoder, subjects) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("name", ["pocket-dino", "pocket-clip"])
def test_likeness_is_the_mean_over_subjects_of_the_mean_over_pairs(name: str, tmp_path: Path) -> None:
    encoder = encoders.load(name)
    for subject, seeds in (("same", (1, 1, 1)), ("two", (1, 2)), ("three", (3, 4, 5))):
        (tmp_path / subject).mkdir()
        for number, seed in enumerate(seeds):
            noise_picture(seed).save(tmp_path / subject / f"{number}.png")
    (tmp_path / "licences.txt").write_text("not a subject")
    same, three, two = subjects_of(tmp_path, 64)
    assert [len(same), len(two), len(three)] == [3, 2, 3] and np.array_equal(same[0], same[2])

    assert likeness(encoder, [same]) == pytest.approx(1, abs=1e-5)
    a, b, c = encoder.images(three)
    pairs = [float(one @ other) for one, other in ((a, b), (a, c), (b, c))]
    assert likeness(encoder, [three]) == pytest.approx(mean(pairs), abs=1e-5)
    pair = float(cosine(encoder.images(two[:1]), encoder.images(two[1:])))
    assert likeness(encoder, [same, three, two]) == pytest.approx((1 + mean(pairs) + pair) / 3, abs=1e-5)


def test_a_judges_ceiling_is_the_likeness_of_one_subject() -> None:
    pictures = [noise_picture(seed, (64, 64)) for seed in range(4)]
    dino = encoders.load("pocket-dino")
    judge = Judge(dino, encoders.load("pocket-clip"), [Photos(pictures, [])])
    assert judge.ceiling() == pytest.approx(likeness(dino, [pictures]), abs=1e-5)
