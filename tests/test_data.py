"""From files to batches: which photo, which crop, which latents are functions of (seed, update, sample)."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, noise_picture
from PIL import Image
from torch.optim.lr_scheduler import LambdaLR

from dreamlab.checks import check
from dreamlab.data import Batch, Crops, ImageSet, Item, TrainingData
from dreamlab.models import Family
from dreamlab.module import DreamBooth, Objective
from dreamlab.photos import Region, crop, digest, list_images
from dreamlab.randomness import choice

IDS = torch.arange(24)


def image_set(folder: Path, is_prior: bool = False, random_crop: bool = False, flip: bool = False) -> ImageSet:
    items = [Item(path, IDS, 24) for path in list_images(folder)]
    return ImageSet(items, Crops(64, is_random=random_crop, flip=flip), is_prior)


def drawn(images: ImageSet, update: int, sample: int = 0, index: int = 0) -> torch.Tensor:
    """The pixels of one sample of one update."""
    pixels = images.picture(index, images.region(1, update, sample, index, (64, 64)))
    assert isinstance(pixels, torch.Tensor)
    return pixels


def test_a_crop_is_the_middle_scaled_to_the_shorter_side() -> None:
    stripes = np.zeros((40, 80, 3), dtype=np.uint8)
    stripes[:, 20:60] = 255
    pixels = crop(Image.fromarray(stripes), Region(40, 40))
    assert pixels.shape == (3, 40, 40) and pixels.dtype == torch.float32
    assert (pixels == 1).all()
    assert (crop(Image.fromarray(stripes), Region(40, 40, (0.0, 0.0)))[:, :, :20] == 0).all()
    assert torch.equal(
        crop(noise_picture(1), Region(32, 32, flip=True)), crop(noise_picture(1), Region(32, 32)).flip(2)
    )


def test_each_pass_shows_every_image_once_in_an_order_of_its_own() -> None:
    order = [choice(7, position, 5) for position in range(50)]
    passes = [tuple(order[start : start + 5]) for start in range(0, 50, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len(set(passes)) > 5
    assert order == [choice(7, position, 5) for position in range(50)]
    assert order != [choice(8, position, 5) for position in range(50)]


def test_which_class_image_stands_beside_a_photo_is_left_to_chance() -> None:
    pairs = Counter((choice(3, k, 4), choice(3, k, 4, is_prior=True)) for k in range(1600))
    assert len(pairs) == 16
    assert all(60 < count < 140 for count in pairs.values())  # 100 expected of each


def test_random_crops_and_flips_differ_by_sample_and_repeat_by_seed(photos: Path) -> None:
    images = image_set(photos, random_crop=True, flip=True)
    first, again = ([drawn(images, update) for update in range(6)] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.sum().item() for one in first}) > 3


def test_cached_moments_are_the_encoders_and_are_sampled_anew_each_update(photos: Path, model: Family) -> None:
    images, plain = image_set(photos), image_set(photos)
    with torch.no_grad():
        images.cache(lambda path, region, pixels: model.encode_images(pixels), 1, images.shapes)
    cached, pixels = TrainingData([images], 1, 2, 1), TrainingData([plain], 1, 2, 1)
    module = DreamBooth(
        model, torch.nn.ModuleDict(), torch.optim.AdamW, LambdaLR, lr=1e-3, seed=1, objective=Objective()
    )
    for update in (0, 3):
        one, other = cached.batch(update, 0), pixels.batch(update, 0)
        assert one.pixel_values is None and other.moments is None
        # one convolution over two photos and two over one round differently
        torch.testing.assert_close(module.noised(one).latents, module.noised(other).latents, atol=1e-4, rtol=1e-4)
    mean, std = images.picture(0, Region(64, 64))
    first, second = (
        module.noised(Batch(IDS[None], torch.tensor([False]), u, [0], moments=(mean[None], std[None]))).latents
        for u in range(2)
    )  # fmt: skip
    assert not torch.equal(first, second)
    assert (std > 0).all()


def test_a_changed_an_added_and_a_renamed_photo_change_the_digest(tmp_path: Path) -> None:
    for number in range(3):
        noise_picture(number).save(tmp_path / f"{number}.png")
    before = digest(list_images(tmp_path))
    assert before == digest(list_images(tmp_path))
    noise_picture(9).save(tmp_path / "1.png")
    changed = digest(list_images(tmp_path))
    (tmp_path / "0.png").rename(tmp_path / "5.png")
    assert len({before, changed, digest(list_images(tmp_path))}) == 3


@pytest.mark.slow
def test_a_mixed_folder_with_captions_and_junk_trains_end_to_end(train_run: TrainRun, tmp_path: Path) -> None:
    folder = tmp_path / "Räx, the dog"
    folder.mkdir()
    for number, name in enumerate(("a.JPEG", "b.png", "c.webp", "d.jpg")):
        noise_picture(number).save(folder / name)
        (folder / name).with_suffix(".txt").write_text("a photo of zwx dog")
    (folder / ".DS_Store").write_bytes(b"\x00junk")
    run = train_run(f'instance_dir="{folder}"', 'class_word="teddy bear"')
    assert [Path(photo).name for photo in run.read_card()["photos"]] == ["a.JPEG", "b.png", "c.webp", "d.jpg"]
    assert run.read_card()["instance_prompt"] == "a photo of a zwx teddy bear"
    assert run.grid.is_file() and (run.model / "model_index.json").is_file()


SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "dreambooth" / "teapot"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not here")
def test_photos_of_a_real_subject_need_no_other_setting(settings: Settings) -> None:
    config, subject = check(settings(f"instance_dir={SHARED}", "class_word=teapot"))
    assert len(subject.photos) >= 4 and config.class_word == "teapot"
