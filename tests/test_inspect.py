"""The doctor as a command, as warnings before training, and its page in a browser."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings, TrainRun, noise_picture
from PIL import Image
from test_doctor import SCENES, scene

from dreamlab import doctor, inspect
from dreamlab.commands import Inspect
from dreamlab.errors import UserError
from dreamlab.photos import UPRIGHT, read_photo
from dreamlab.schema import Data
from dreamlab.subject import read_subject

HOSTILE = "<img src=x onerror=window.hacked=1>.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sound photos, one with a hostile name, and a copy."""
    made = tmp_path / "photos"
    made.mkdir()
    for number, image in enumerate(SCENES):
        image.save(made / (HOSTILE if number == 0 else f"{number}.png"))
    SCENES[1].save(made / "again.jpg", quality=70)
    return made


def look(folder: Path, page: Path, **values: Any) -> doctor.Diagnosis:
    settings = {"class_word": "teapot", "resolution": 64, "instance_dir": str(folder), "out": str(page), **values}
    (found,) = inspect.inspect(Inspect(**settings))
    return found


def test_the_command_tells_the_verdict_and_writes_a_page(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreamlab.inspect", f"instance_dir={folder}", "class_word=teapot"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1.png, again.jpg. Keep the best of them." in " ".join(done.stdout.split())
    assert "Usable, with 1 remark. First: 2 photos are nearly the same" in done.stdout
    assert (tmp_path / "outputs" / "photos-photos.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "outputs"}
    assert len(list(folder.iterdir())) == 6, "nothing is written among the photos"


def test_help_is_quick_and_the_standard_inspect_is_the_standard_librarys(tmp_path: Path) -> None:
    begin = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "dreamlab.inspect", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "python -m dreamlab.inspect instance_dir=photos/rex" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "PIL", "scipy"} & imported
    assert time.monotonic() - begin < 20, "a busy machine; 2 s on an idle one"
    code = "import sys, dreamlab.inspect, inspect; print(inspect.__file__, inspect.signature(sorted))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "dreamlab" not in done.stdout


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"instance_dir": "nowhere"}, "does not exist"),
        ({"class_word": None}, "class_word is missing"),
        ({"resolution": 4}, "give 8 pixels"),
        ({"encoder": "pocket-dyno"}, "pocket-dino"),
        ({"class_dir": "nowhere"}, "no such folder"),
        ({"out": "/dev/null/page.html"}, "cannot be written"),
    ],
)  # fmt: skip
def test_wrong_input_is_a_sentence(folder: Path, tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        look(folder, tmp_path / "page.html", **values)


def test_photos_are_cut_as_training_cuts_them(tmp_path: Path) -> None:
    for number in range(3):
        scene(number, (900, 500)).save(tmp_path / f"{number}.png")
    assert look(tmp_path, tmp_path / "a.html").looks[0].cut_away == pytest.approx(4 / 9)
    assert look(tmp_path, tmp_path / "b.html", data=Data(buckets=True)).looks[0].cut_away < 0.15


def test_every_subject_is_looked_at(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "subjects.yaml"
    file.write_text(
        f"- {{instance_dir: '{folder}', token: zwx, class_word: teapot}}\n"
        f"- {{instance_dir: '{folder}', token: ohwx, class_word: dog}}\n"
    )
    page = tmp_path / "page.html"
    found = inspect.inspect(Inspect(instance_dir="demo", concepts=str(file), out=str(page), resolution=64))
    assert [one.case.token for one in found] == ["zwx", "ohwx"]
    assert page.read_text(encoding="utf-8").count('class="verdict') == 2


def test_training_begins_with_the_warnings(
    train_run: TrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    noise_picture(5).save(folder / "lone.png")
    train_run(f"instance_dir={folder}")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Photos: ")]
    assert any(line.startswith("Photos: There is 1 different photo: too few") for line in told)


def test_warnings_come_once_and_are_never_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings("class_word=teapot")
    subject = read_subject(config)

    def broken(case: doctor.Case) -> doctor.Diagnosis:
        raise ZeroDivisionError("no pixel")

    monkeypatch.setattr(doctor, "diagnose", broken)
    inspect._warn_once.cache_clear()
    inspect.warn(config, subject)
    inspect.warn(config, subject)
    assert capsys.readouterr().err.count("could not be looked at: no pixel") == 1
    inspect.warn(settings("instance_dir=demo"), subject)
    assert capsys.readouterr().err == "", "the demo's photos are known to be crops of one"


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    scene(0, (1600, 1200)).save(path)
    assert read_photo(path, UPRIGHT, least_px=250).size == (400, 300)
    assert read_photo(path).size == (1600, 1200)


def test_the_page_escapes_names_and_stands_alone(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    look(folder, page)
    html = page.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=window.hacked=1&gt;.png" in html and HOSTILE not in html
    assert html.count("<figure>") == 6 and "default-src &#39;none&#39;" in html
    assert 'href="http' not in html and 'src="http' not in html


@pytest.mark.browser
def test_a_browser_shows_every_photo_and_runs_nothing(folder: Path, tmp_path: Path, browser: Any) -> None:
    page = tmp_path / "page.html"
    look(folder, page)
    browser.get_log("browser")
    browser.get(page.as_uri())
    shown = (
        "return [...document.images].map(i => { i.loading = 'eager'; return i.decode().then(() => i.naturalWidth) })"
    )
    widths = browser.execute_async_script(
        f"const done = arguments[0]; Promise.all((() => {{ {shown} }})()).then(done, e => done(String(e)))"
    )
    assert widths == [224] * 12
    assert browser.execute_script("return window.hacked") is None
    assert browser.find_element("css selector", "figcaption").text in (HOSTILE, "1.png")
    assert HOSTILE in browser.find_element("tag name", "main").text
    assert browser.get_log("browser") == []
    for width in (360, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_a_crop_of_few_pixels_is_shown_as_it_is(folder: Path, tmp_path: Path) -> None:
    from dreamlab.inspection_page import _crop, _enlarged

    case = look(folder, tmp_path / "page.html").case
    cut = _crop(read_photo(folder / "1.png"), case)
    large = _enlarged(cut)
    assert cut.size == (64, 64) and large.size == (224, 224)
    assert {colour for _, colour in large.getcolors(9999)} <= {colour for _, colour in cut.getcolors(9999)}, (
        "no pixel is made up"
    )
    assert isinstance(large, Image.Image)
