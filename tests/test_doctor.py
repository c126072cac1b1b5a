"""The doctor on synthetic photos: each fault is found where it was planted, and only there."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from planted_faults import COPIES, before, cropped, encoded, gaussian, letterbox, motion, small, text_strip, watermark

from dreamlab import borders, set_faults, sharpness
from dreamlab.doctor import Case, Diagnosis, Judge, diagnose
from dreamlab.look import look_at
from dreamlab.photos import Loading, has_alpha
from dreamlab.remarks import Remark, names, printable, verdict
from dreamlab.sameness import alike, are_copies, are_near, fingerprint
from dreamlab.subject import Photo

SIDE = 256


def scene(seed: int, size: tuple[int, int] = (640, 640)) -> Image.Image:
    """A cluttered picture of sharp shapes that no other seed gives."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = draw.uniform(0, size[0]), draw.uniform(0, size[1])
        w, h = draw.uniform(0.02, 0.15, 2) * min(size)
        colour = tuple(int(level) for level in draw.integers(0, 256, 3))
        (pen.ellipse if draw.integers(2) else pen.rectangle)((x, y, x + w, y + h), fill=colour)
    return image


Save = Callable[..., list[Path]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save_all(*images: Image.Image, ending: str = "png", **options: int) -> list[Path]:
        paths = [tmp_path / f"{number}.{ending}" for number in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            image.save(path, **options)
        return paths

    return save_all


def judged(paths: list[Path], class_word: str = "teapot", **values: object) -> Diagnosis:
    photos = tuple(Photo(path, f"a photo of a zwx {class_word}") for path in paths)
    case = {"photos": photos, "own": (), "token": "zwx", "class_word": class_word, "side_px": SIDE, **values}
    return diagnose(Case(**case))  # type: ignore[arg-type]


def badges(diagnosis: Diagnosis) -> dict[str, int]:
    return {remark.badge: len(remark.photos) for remark in diagnosis.remarks}


SCENES = [scene(seed) for seed in range(5)]


def test_sound_photos_are_good(save: Save) -> None:
    found = judged(save(*SCENES))
    assert found.remarks == [] and found.state == "good"


@pytest.mark.parametrize(
    ("fault", "badge"),
    [
        (gaussian(5), "blurred"), (motion(25, 0), "blurred"), (motion(25, 60), "blurred"), (small(200), "too small"),
        (letterbox(0.1), "bars"), (letterbox(0.05, (255, 255, 255)), "bars"), (text_strip, "bars"),
        (lambda image: encoded(image, 6), "compressed"),
        (lambda image: image.resize((640, 360)), "cut away"),
    ],
)  # fmt: skip
def test_a_fault_of_a_photo_is_found_in_that_photo_alone(save: Save, fault: Callable, badge: str) -> None:
    found = judged(save(*SCENES[:3], fault(SCENES[3])), side_px=384 if badge == "compressed" else SIDE)
    assert badges(found) == {badge: 1} and found.state == "usable"
    (remark,) = found.remarks
    assert [path.name for path in remark.photos] == ["3.png"] and remark.what.startswith("1 of 4 photos is ")


def test_quality_is_read_off_the_tables_and_ignored_where_it_cannot_be_seen(save: Save) -> None:
    for quality in (1, 10, 30, 50, 75, 90, 95):
        (path,) = save(SCENES[0], ending="jpg", quality=quality)
        with Image.open(path) as opened:
            assert sharpness.jpeg_quality(opened) == quality
        assert look_at(path, 512).quality == quality
        assert look_at(path, 64).quality is None, "a tenth of the photo's size shows no block"
    assert look_at(save(SCENES[0])[0], 512).quality is None


def test_blur_is_measured_in_pixels_whatever_the_picture_shows() -> None:
    for sigma in (1.0, 2.0, 3.0):
        for image in SCENES[:3]:
            grey = np.asarray(gaussian(sigma)(image).convert("L"), np.float32)
            assert sharpness.edge_blur_px(grey) == pytest.approx(sigma, rel=0.25)
    assert sharpness.edge_blur_px(np.full((64, 64), 128, np.float32)) is None


def test_blur_that_the_crop_does_not_show_is_no_fault(save: Save) -> None:
    paths = save(*(gaussian(1.9)(image) for image in SCENES))
    assert "blurred" in badges(judged(paths, side_px=640))
    assert judged(paths, side_px=128).state == "good"


@pytest.mark.parametrize("name", COPIES)
def test_copies_and_bursts_are_found_and_other_photos_are_not(name: str) -> None:
    one, changed = fingerprint(SCENES[0]), fingerprint(COPIES[name](SCENES[0]))
    others = [fingerprint(image) for image in SCENES[1:]]
    assert are_near(one, changed)
    assert not any(are_near(changed, other) for other in others)
    assert alike([others[0], one, others[1], changed]) == [[1, 3]]


def test_repeated_photos_count_once(save: Save) -> None:
    found = judged(save(SCENES[0], cropped(0.04, 0.02)(SCENES[0]), encoded(SCENES[0], 80), SCENES[1]))
    assert badges(found) == {"too few": 0, "repeated": 3} and found.state == "bad"
    assert found.sentence.startswith("Not good yet: There are 2 different photos: too few")


@pytest.mark.parametrize(
    ("class_word", "wanted"), [("teapot", 3), ("dog", 5), ("old woman", 10), ("stuffed dog", 3), ("toy", 3)]
)
def test_how_many_photos_are_few_depends_on_the_subject(save: Save, class_word: str, wanted: int) -> None:
    found = judged(save(*SCENES[:4]), class_word)
    assert badges(found) == ({"few": 0} if wanted > 4 else {})
    assert not wanted > 4 or f"Take {wanted} or more" in found.remarks[0].remedy


def test_a_few_bad_photos_among_good_ones_do_no_harm_but_most_of_them_do(save: Save) -> None:
    bad = [gaussian(8)(image) for image in SCENES]
    assert judged(save(*SCENES[:3], *bad[3:])).state == "usable"
    found = judged(save(*SCENES[:2], *bad[2:]))
    assert found.state == "bad" and "Only 2 of 5 different photos" in found.sentence


def test_one_background_is_found(save: Save) -> None:
    behind = scene(99)
    found = judged(save(*(before(image, behind, seed) for seed, image in enumerate(SCENES))))
    assert "one background" in badges(found)


def test_plain_backgrounds_are_found_when_they_are_the_most(save: Save) -> None:
    def on(colour: tuple[int, int, int], image: Image.Image) -> Image.Image:
        whole = Image.new("RGB", (900, 900), colour)
        whole.paste(image, (130, 230))
        return whole

    colours = [(250, 250, 250), (20, 60, 200), (90, 200, 90)]
    studio = [on(colour, image) for colour, image in zip(colours, SCENES, strict=False)]
    found = judged(save(*studio, *SCENES[3:]))
    assert badges(found)["plain"] == 3
    assert "plain" not in badges(judged(save(*studio[:2], *SCENES[2:])))


def test_a_watermark_at_one_place_is_found(save: Save) -> None:
    found = judged(save(*map(watermark(255), SCENES)))
    assert badges(found) == {"marks": 0} and "(bottom " in found.remarks[0].what


def test_a_border_without_an_abrupt_end_is_no_bar() -> None:
    fade = np.tile(np.linspace(0, 255, 256)[:, None, None], (1, 256, 3)).astype(np.uint8)
    assert borders.bars(fade) == {} and borders.bars(np.full((9, 9, 3), 7, np.uint8)) == {}


def test_transparent_photos_are_told_unless_the_transparency_is_their_mask(save: Save) -> None:
    images = [image.convert("RGBA") for image in SCENES]
    hole = Image.new("L", images[4].size, 255)
    hole.paste(0, (100, 100, 300, 300))
    images[4].putalpha(hole)
    paths = save(*images)
    assert has_alpha(paths[0]), "opaque everywhere, which is no fault"
    assert badges(judged(paths)) == {"transparent": 1}
    masked = tuple(Photo(path, "zwx teapot", path) for path in paths)
    assert judged(paths, photos=masked).state == "good"


def test_a_masked_subject_that_the_crop_cuts_is_told(save: Save, tmp_path: Path) -> None:
    paths = save(*(image.resize((640, 440)) for image in SCENES))
    mask = Image.new("L", (640, 440), 0)
    mask.paste(255, (0, 100, 200, 300))
    mask.save(tmp_path / "0.mask.png")
    photos = tuple(Photo(path, "zwx teapot", tmp_path / "0.mask.png" if path.stem == "0" else None) for path in paths)
    found = judged(paths, photos=photos)
    assert badges(found) == {"subject cut": 1}
    assert look_at(paths[0], SIDE, mask=tmp_path / "0.mask.png").subject_cut == pytest.approx(0.5, abs=0.01)
    assert look_at(paths[0], SIDE, 32, mask=tmp_path / "0.mask.png").subject_cut < 0.2, "buckets keep more"


def test_exif_is_told_only_where_it_is_not_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    scene(0, (640, 480)).save(path, exif=exif)
    assert look_at(path, SIDE).size == (480, 640) and not look_at(path, SIDE).is_sideways
    lying = look_at(path, SIDE, loading=Loading(exif=False))
    assert lying.size == (640, 480) and lying.is_sideways


def test_only_files_that_lose_frames_are_told(tmp_path: Path) -> None:
    scenes = [scene(seed, (300, 300)) for seed in range(2)]
    for name in ("moving.gif", "moving.webp", "pages.tif", "phone.mpo"):
        scenes[0].save(tmp_path / name, save_all=True, append_images=scenes[1:])
    shutil.move(tmp_path / "phone.mpo", tmp_path / "phone.jpg")
    frames = {path.name: look_at(path, SIDE).frames for path in tmp_path.iterdir()}
    assert frames == {"moving.gif": 2, "moving.webp": 2, "pages.tif": 2, "phone.jpg": 1}


def test_photos_among_the_class_images_are_found_by_content_and_by_looks(save: Save, tmp_path: Path) -> None:
    paths = save(*SCENES)
    folder = tmp_path / "class"
    folder.mkdir()
    shutil.copy(paths[1], folder / "same.png")
    encoded(SCENES[2], 70).resize((300, 300)).save(folder / "smaller.jpg")
    scene(50).save(folder / "other.png")
    own = tuple(Photo(path, "a teapot") for path in sorted(folder.iterdir()))
    (remark,) = judged(paths, own=own).remarks
    assert remark.weight == "remark"
    told = {path.name: detail for path, detail in remark.photos.items()}
    assert told == {"1.png": "also in class_dir: same.png", "2.png": "also in class_dir: smaller.jpg"}
    assert judged(paths, own=tuple(Photo(path, "a teapot") for path in paths)).state == "bad"


def test_prompts_without_the_words_are_told(save: Save) -> None:
    paths = save(*SCENES[:3])
    prompts = ["a photo of a ZWX teapot", "my zwxteapot", "a zwx"]
    found = judged(paths, photos=tuple(map(Photo, paths, prompts)))
    told = {remark.badge: [path.name for path in remark.photos] for remark in found.remarks}
    assert told == {"no token": ["1.png"], "no class word": ["1.png", "2.png"]} and found.state == "usable"
    assert judged(paths, photos=tuple(Photo(path, "a teapot") for path in paths)).state == "bad"


def test_an_encoder_tells_too_few_angles(save: Save) -> None:
    paths = save(*SCENES)

    def same(images: object) -> torch.Tensor:
        return torch.eye(2)[[0] * 5]

    case = judged(paths).case
    assert badges(diagnose(case, Judge("x", same, 0.8))) == {"few angles": 0}
    untold = diagnose(case, Judge("x", same, None))
    assert untold.state == "good" and "1.00 alike to x" in untold.remarks[0].what
    apart = diagnose(case, Judge("x", lambda images: torch.eye(5), 0.8))
    assert [remark.weight for remark in apart.remarks] == ["note"]


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (900, 45), (8, 8), (64, 64), (100, 2000)])
def test_any_picture_can_be_looked_at(save: Save, size: tuple[int, int]) -> None:
    images = [Image.new("RGB", size, colour) for colour in ("black", "white", "red")] + [scene(1, size)]
    assert judged(save(*images)).state in ("usable", "bad")
    assert judged(save(*images), bucket_step=32).looks[0].cut_away >= 0


def test_the_verdict_is_the_worst_remark_and_names_it() -> None:
    note, fair, fault = (Remark(weight, "Do.", weight) for weight in ("note", "remark", "fault"))
    assert verdict([note]) == ("good", "Good: nothing stands in the way of learning from these photos.")
    assert verdict([fair, note]) == ("usable", "Usable, with 1 remark. First: remark Do.")
    assert verdict([fair, fault]) == ("bad", "Not good yet: fault Do.")


def test_names_steer_no_terminal_and_are_not_endless() -> None:
    assert printable("a\x1b[31m\n.jpg") == "a?[31m?.jpg"
    assert names([Path(f"{number}.jpg") for number in range(5)]) == "0.jpg, 1.jpg, 2.jpg and 2 more"


def test_many_photos_take_little_longer_each(save: Save) -> None:
    paths = save(*map(watermark(255), SCENES))
    many = [replace(look_at(path, SIDE), path=Path(f"{number}.png")) for number in range(20) for path in paths]
    begin = time.monotonic()
    assert set_faults.common_marks(many) and set_faults.one_background(many) is not None
    assert time.monotonic() - begin < 5, "100 photos have 4950 pairs"


def test_copies_are_told_from_photos_of_one_burst() -> None:
    one = fingerprint(SCENES[0])
    assert are_copies(one, fingerprint(encoded(SCENES[0], 50)))
    assert not are_copies(one, fingerprint(SCENES[1]))
