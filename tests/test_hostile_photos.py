"""Folders that hold what no photo is: each loads rightly or is one sentence, and nothing hangs."""

import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Settings, noise_picture
from PIL import Image

from dreamlab.doctor import Case, diagnose
from dreamlab.errors import UserError
from dreamlab.photos import Region, crop, list_images, read_photo
from dreamlab.subject import Photo, find_photos, read_subject

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) print\nshowpage\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of black and white pixels, of which it may hold none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


REFUSED = {  # name and content -> what the sentence says
    "empty.jpg": (b"", "cannot identify image file"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "cannot identify image file"),
    "bomb.png": (png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(100)))), "exceeds limit"),
    "words.png": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 2**22))), "too large"),
    "line.png": (png(50_000, 1, chunk(b"IDAT", zlib.compress(bytes(6251)))), "50000 x 1 px: one side is over 20 times"),
    "program.jpg": (EPS, "it is EPS"),
    "cut.png": (png(64, 64, chunk(b"IDAT", zlib.compress(bytes(9 * 64))[:6])), "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_a_sentence(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(UserError, match=said) as refused:
        find_photos(str(tmp_path))
    assert str(tmp_path / name) in str(refused.value) and time.perf_counter() - began < 2
    assert "\n" not in str(refused.value) and len(recwarn) == 0


def test_a_program_in_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads EPS by Ghostscript, which runs it."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "photo.jpg").write_bytes(EPS)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError):
        find_photos(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def saved(path: Path, image: Image.Image, **options: object) -> None:
    image.save(path, **options)


GREEN = Image.new("RGB", (16, 12), (0, 160, 0))
SHOWN: dict[str, Callable[[Path], None]] = {  # files that look green, each in a way of its own
    "animated.png": lambda path: saved(path, GREEN, save_all=True, append_images=[Image.new("RGB", (16, 12), "red")]),
    "animated.gif": lambda path: saved(path, GREEN, save_all=True, append_images=[Image.new("RGB", (16, 12), "red")]),
    "animated.webp": lambda path: saved(
        path, GREEN, save_all=True, append_images=[Image.new("RGB", (16, 12), "red")], lossless=True
    ),
    "really-a-gif.jpg": lambda path: saved(path, GREEN, format="GIF"),
    "palette.png": lambda path: saved(path, GREEN.quantize(4), transparency=3),
    "ycbcr.tif": lambda path: saved(path, GREEN.convert("YCbCr")),
    "cmyk.tif": lambda path: saved(path, GREEN.convert("CMYK")),
    "pixel.png": lambda path: saved(path, GREEN.crop((0, 0, 1, 1))),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_a_photo_shows_what_it_shows(name: str, tmp_path: Path) -> None:
    SHOWN[name](tmp_path / name)
    (path,) = find_photos(str(tmp_path))
    image = read_photo(path)
    assert image.mode == "RGB" and image.size in ((16, 12), (1, 1))
    assert np.abs(np.asarray(image).reshape(-1, 3).astype(int) - [0, 160, 0]).max() <= 4
    assert crop(image, Region(64, 64)).shape == (3, 64, 64)
    assert diagnose(Case((Photo(path, "a zwx dog"),), (), "zwx", "dog", 64)).state in ("bad", "usable")


@pytest.mark.filterwarnings("error")
def test_pixels_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "odd.tif")
    pixels = np.asarray(read_photo(tmp_path / "odd.tif"))
    assert (pixels[0, :2] == 0).all() and (abs(pixels[1:].astype(int) - 128) <= 1).all()


def test_nothing_waits_for_a_pipe_or_follows_a_link_in_circles(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    noise_picture(1).save(elsewhere / "photo.png")
    (folder / "linked.png").symlink_to(elsewhere / "photo.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "folder.png").symlink_to(folder)
    for name in ("pipe.png", "linked.txt", "linked.mask.png", "concepts.json"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # the path of a socket may have 107 bytes
        listening.bind("socket.png")
        assert [path.name for path in list_images(folder)] == ["linked.png"]
    subject = read_subject(settings(f"instance_dir={folder}", "data.mask=none"))
    assert subject.photos == [folder / "linked.png"] and subject.instance_prompt == "a photo of a zwx dog"
    with pytest.raises(UserError, match=r"no photo in .* has a mask"):
        read_subject(settings(f"instance_dir={folder}", "data.mask=file"))
    for odd in (folder / "concepts.json", Path("/dev/zero"), folder):
        with pytest.raises(UserError, match=rf"concepts={odd} .*Give a JSON or YAML list"):
            read_subject(settings("instance_dir=demo", "class_word=null", f"concepts={odd}"))
