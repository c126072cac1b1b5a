"""Wrong inputs: one sentence with the remedy and exit code 2, before a weight loads. Right ones pass."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Settings, noise_picture
from PIL import Image

from dreamlab import assemble
from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.models import find
from dreamlab.photos import read_photo
from dreamlab.subject import find_photos
from dreamlab.train import main

Failure = Callable[..., str]
BAD = {  # what is typed -> what the sentence says; the first part names the mistake, the others the remedy
    "stepz=2": ("'stepz'", "Did you mean 'steps'?"),
    "sampling.step=2": ("'sampling.step'", "Did you mean 'sampling.steps'?"),
    "optimizer.lr=1e-5": ("'optimizer.lr'", "Did you mean 'lr'?"),
    "optmizer=adamw": ("'optmizer'", "Did you mean 'optimizer'?"),
    "+lrr=1e-5": ("'lrr'", "Did you mean 'lr'?"),
    "+sampling.stepz=2": ("'sampling.stepz'", "Did you mean 'steps'?"),
    "optimizer=adm": ("no optimizer called 'adm'", "Did you mean 'adamw'?"),
    "optimizer.betas=[2,3]": ("AdamW refuses", "beta", "Change optimizer."),
    "optimizer.weight_decay=abc": ("AdamW refuses", "weight_decay", "Change optimizer."),
    "+optimizer.decay=1": ("takes no 'decay'", "weight_decay"),
    "optimizer._target_=os.system": ("may not be built", "torch.optim.*"),
    "optimizer._target_=torch.optim.AdamV": ("no torch.optim.AdamV", "Did you mean 'Adam"),
    "model=sd51": ("no model called 'sd51'", "Did you mean 'sd", "pocket, sd15, sd21"),
    "model.source=./nowhere": ("no model at './nowhere'", "a hub id, a folder"),
    "model.family=sdxxl": ("model.family=sdxxl", "stable_diffusion"),
    "adapter.train=[unett]": ("'unett'", "Did you mean 'unet'?"),
    "adapter.train=[]": ("nothing would learn", "adapter.train=[unet,text_encoder]"),
    "logger=wandbb": ("no logger called 'wandbb'", "Did you mean 'wandb'?", "none"),
    "experiment=dmo": ("no experiment called 'dmo'", "Did you mean 'demo'?"),
    "steps=-1": ("steps=-1", "1 or more"),
    "steps=1.5": ("steps=1.5", "Integer", "--help"),
    "lr=abc": ("lr=abc", "Float", "--help"),
    "lr=nan": ("lr=nan", "above 0"),
    "lr=inf": ("lr=inf", "above 0"),
    "lr=0": ("lr=0", "above 0"),
    "batch_size=0": ("batch_size=0", "1 or more"),
    "num_prior_images=0": ("num_prior_images=0", "prior_weight=0"),
    "resolution=65": ("resolution=65", "multiple of 8"),
    "precision=fp8": ("precision=fp8", "fp32"),
    "device=tpu": ("device=tpu", "cpu"),
    "prior.sampler=dddim": ("prior.sampler=dddim", "Did you mean 'ddim'?"),
    "class_word=": ("class_word is empty", "class_word=dog"),
    "class_word=null": ("class_word is missing", "class_word=dog"),
    "token='two words'": ("two words", "one word"),
    "token=dog": ("both 'dog'", "a word of its own"),
    "instance_prompt='a {thing}'": ("{thing}", "{token} and {class_word}"),
    "prompts=['a {token']": ("stray brace",),
    "schedule.warmup=5": ("constant has no warmup", "schedule=constant_with_warmup"),
    "schedule=cosine schedule.warmup=9 steps=5": ("schedule.warmup=9", "smaller warmup or more steps"),
    "class_dir=/nowhere": ("class_dir=/nowhere", "no such folder"),
    "resume=/nowhere": ("resume=/nowhere", "auto, never"),
    f"prompts=[a hf_{'Ab1' * 11} dog]": ("holds a token of the hub", "Leave it in the environment"),
    "instance_prompt='${oc.env:WANDB_API_KEY}'": ("holds the value of WANDB_API_KEY", "Leave it in the environment"),
    "instance_dir='~nobody-of-this-name/photos'": ("instance_dir=", "no name of a file or folder", "Give another"),
    "bear": ("'bear'", "key=value", "quotes"),
    "prompts=[": ("'prompts=['", "key=value"),
}


def sentence_of(stderr: str) -> str:
    """The one line that a person reads; fails if there is more of it, or a traceback."""
    told = [line for line in stderr.splitlines() if line.startswith("dreamlab: ")]
    assert len(told) == 1 and "Traceback" not in stderr and "Error executing" not in stderr, stderr
    return told[0]


@pytest.fixture
def failure(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Failure:
    """`failure("steps=-1")`: run the real command in this process; what it says on its way out."""

    def no_weights(*_: object) -> None:
        raise AssertionError("weights were loaded")

    def run(*words: str) -> str:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: let the end of the test put it back
        monkeypatch.setattr(assemble, "base_model", no_weights)  # a tripwire; nothing stands in for the model
        out = tmp_path / "outputs"
        fixed = ["train", f"instance_dir={photos}", "class_word=dog", "logger=none", f"out={out}"]
        monkeypatch.setattr(sys, "argv", [*fixed, *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert not out.exists() or not any(out.iterdir()), "a run directory was made"
        said = sentence_of(capsys.readouterr().err)
        assert "0123456789abcdef" not in said and "hf_" not in said
        return said

    return run


@pytest.mark.parametrize("typed", BAD)
def test_a_bad_setting_is_named_with_its_remedy(failure: Failure, typed: str) -> None:
    words = typed.split() if typed.count("=") > 1 else [typed]
    said = failure(*words)
    assert all(part in said for part in BAD[typed]), said


def test_a_missing_folder_is_named(failure: Failure, tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in failure(f"instance_dir={tmp_path / 'gone'}")


def test_an_empty_folder_is_named_with_what_belongs_there(failure: Failure, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    said = failure(f"instance_dir={tmp_path / 'empty'}")
    assert "holds no photos" in said and "JPEG, PNG or WebP" in said


def test_the_folder_inside_that_has_the_photos_is_named(tmp_path: Path) -> None:
    (tmp_path / "rex").mkdir()
    noise_picture(0).save(tmp_path / "rex" / "0.png")
    with pytest.raises(UserError, match=f"holds no photos. {tmp_path / 'rex'} does: give that."):
        find_photos(str(tmp_path))


def test_a_run_whose_name_is_mistyped_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("outputs/rox") == "outputs/rox", "nothing of that name is here"
    (tmp_path / "outputs" / "rex").mkdir(parents=True)
    (tmp_path / "outputs" / "rex" / "status.json").write_text("{}")
    with pytest.raises(UserError, match="no model at 'outputs/rox'\\. Did you mean 'outputs/rex'"):
        find("outputs/rox")
    assert find("somebody/model") == "somebody/model"


def test_a_file_in_place_of_the_folder_is_named(failure: Failure, photos: Path) -> None:
    assert "is a file, not a folder" in failure(f"instance_dir={photos / '0.png'}")


@pytest.mark.parametrize("keep", [0.5, 0.0], ids=["cut short", "of zero bytes"])
def test_one_corrupt_photo_among_good_ones_is_named(failure: Failure, tmp_path: Path, keep: float) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        noise_picture(3).save(folder / name)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: int(len(whole) * keep)])
    said = failure(f"instance_dir={folder}")
    assert str(folder / "b.jpg") in said and "Remove it or save it anew" in said


@pytest.mark.parametrize("key", ["out", "cache_dir"])
def test_a_place_that_cannot_be_written_is_named(failure: Failure, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("in the way")
    said = failure(f"{key}={tmp_path / 'file' / 'below'}")
    assert f"{key}=" in said and "Choose another place" in said


@pytest.mark.parametrize(
    ("typed", "part"), [("stepz=2", "'steps'"), ("instance_dir={empty}", "no photos")], ids=["composing", "checking"]
)
def test_a_real_process_ends_with_one_sentence_and_code_2(tmp_path: Path, typed: str, part: str) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "dreamlab.train", "class_word=dog", typed.format(empty=tmp_path / "empty")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert part in sentence_of(done.stderr)
    assert not (tmp_path / "outputs").exists()


def test_a_class_word_of_two_words_passes(settings: Settings) -> None:
    config, subject = check(settings('class_word="teddy  bear"'))
    assert config.class_word == "teddy bear"
    assert (subject.instance_prompt, subject.class_prompt) == ("a photo of a zwx teddy bear", "a photo of a teddy bear")


def test_fields_are_filled_in_in_every_prompt(settings: Settings) -> None:
    given = ("class_word=owl", "instance_prompt='{token} the {class_word}'", "class_prompt='a {class_word}'")
    _, subject = check(settings(*given))
    assert (subject.instance_prompt, subject.class_prompt) == ("zwx the owl", "an owl")


def test_a_warmup_longer_than_a_prefix_run_passes(settings: Settings) -> None:
    assert check(settings("schedule=constant_with_warmup", "steps=5"))[0].schedule.warmup > 5


def test_only_photos_are_found_among_captions_and_junk(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, name in enumerate(("b.JPG", "c.png", "a.webp", "d.jpeg")):
        noise_picture(number).save(folder / name)
        (folder / name).with_suffix(".txt").write_text("a caption")
    for junk in (".DS_Store", "._b.JPG", "Thumbs.db", "notes.md", "desktop.ini", "data.json"):
        (folder / junk).write_bytes(b"\x00\x05\x16junk")
    (folder / "folder.jpg").mkdir()
    _, subject = check(settings(f"instance_dir={folder}"))
    assert [path.name for path in subject.photos] == ["a.webp", "b.JPG", "c.png", "d.jpeg"]


def test_a_folder_is_found_from_the_home_sign(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    assert find_photos(f"~/{photos.name}") == find_photos(str(photos))


def saved(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """The pixels that `read_photo` makes of `image` written to `path`."""
    image.save(path, **options)
    read = read_photo(path)
    assert read.mode == "RGB"
    return np.asarray(read).astype(int)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    picture = noise_picture(1)
    pixels = saved(picture, tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels, np.rot90(np.asarray(picture), -1))


def test_transparency_becomes_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 4, 8))
    for name, image in {"rgba.png": half, "palette.gif": half.convert("P"), "rgba.webp": half}.items():
        pixels = saved(image, tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.abs(pixels[4, 1] - [255, 0, 0]).max() < 8
        if not name.endswith("gif"):
            assert (pixels[4, 6] == 255).all()


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    pixels = saved(Image.new("RGB", (16, 16), (200, 40, 60)).convert("CMYK"), tmp_path / "print.jpg")
    assert np.abs(pixels - [200, 40, 60]).max() < 12


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_by_their_range_not_by_their_brightest_pixel(tmp_path: Path, name: str) -> None:
    grey = np.linspace(0, 32768, 64, dtype=np.uint16).reshape(8, 8)
    pixels = saved(Image.fromarray(grey), tmp_path / name)
    assert (pixels[0, 0] == 0).all() and np.abs(pixels[-1, -1] - 127.5).max() <= 1
    assert np.abs(pixels[..., 0] - grey / 257).max() <= 1
