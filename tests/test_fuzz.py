"""Whatever a file or a setting holds, it is read or is a sentence, and soon: a UserError, and nothing else, comes out.

    FUZZ_EXAMPLES=100000 python -m pytest tests/test_fuzz.py -n0

A few examples of each kind on every run of the suite, the same ones; with FUZZ_EXAMPLES as many as it says, new ones.
"""

import copy
import dataclasses
import io
import json
import os
import tempfile
import typing
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings, noise_picture
from hypothesis import HealthCheck, given, note
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from dreamlab import sealed
from dreamlab.checks import check
from dreamlab.concepts import read_concepts
from dreamlab.errors import OF_THE_DISK, UserError
from dreamlab.photos import read_photo
from dreamlab.resume import _newest_readable
from dreamlab.schema import Train
from dreamlab.snapshots import read_about
from dreamlab.subject import find_photos

COUNT = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SLOWEST_MS = 20_000 if COUNT else None  # of one example; on a busy machine a short run proves nothing about time


def fuzzed(fewest: int) -> Any:
    return examples(
        max_examples=COUNT or fewest, derandomize=not COUNT, database=None, deadline=SLOWEST_MS,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def seeds() -> list[bytes]:
    """Small whole pictures of every format and of the odd modes."""
    picture, made = noise_picture(1, (24, 16)), []
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "P", {"transparency": 1}), ("PNG", "LA", {}), ("PNG", "1", {}),
        ("PNG", "RGB", {"save_all": True, "append_images": [picture.rotate(180)]}), ("JPEG", "RGB", {}),
        ("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}), ("MPO", "RGB", {}), ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}), ("BMP", "P", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}), ("TIFF", "F", {}), ("TIFF", "YCbCr", {}), ("GIF", "P", {}), ("AVIF", "RGB", {}),
        ("GIF", "P", {"save_all": True, "append_images": [picture.rotate(180).convert("P")]}), ("EPS", "RGB", {}),
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    for form, mode, options in kinds:
        file = io.BytesIO()
        if form in ("JPEG", "PNG", "WEBP", "TIFF"):
            options = {**options, "exif": exif}
        picture.convert(mode).save(file, form, **options)
        made.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(file, "PNG")
    return [*made, file.getvalue()]


Damage = list[tuple[str, float, bytes]]
DAMAGE = st.lists(
    st.tuples(st.sampled_from("scix"), st.floats(0, 1, exclude_max=True), st.binary(max_size=8)), max_size=6
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """Bytes set over others, put between them, taken out, or everything after them."""
    for how, share, new in damage:
        at = int(share * len(content))
        rest = {"s": content[at + len(new) :], "i": content[at:], "x": content[at + 8 :], "c": b""}[how]
        content = content[:at] + new + rest
    return content


SEEDS = seeds()


@fuzzed(60)
@given(st.sampled_from(range(len(SEEDS))), DAMAGE, st.sampled_from(["a.png", "a.jpg", "a.gif", "a.tif", "a.webp"]))
def test_a_picture_is_read_or_refused(folder: Path, number: int, damage: Damage, name: str) -> None:
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    path = photos / name
    path.write_bytes(damaged(SEEDS[number], damage))
    try:
        (found,) = find_photos(str(photos))
        assert read_photo(found).mode == "RGB"
    except UserError as refused:
        note(str(refused))
    finally:
        path.unlink()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
NAMES = st.sampled_from(["instance_dir", "instance_data_dir", "class_prompt", "token", "class_word", "repeats", "x"])
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=5)
)
ENTRIES = st.lists(st.dictionaries(NAMES, SCALARS, max_size=7), max_size=3)
YAMLS = st.sampled_from([
    "- {instance_dir: a, token: &t zwx, class_word: *t}", "- &a [*a]", "&a [&b [*a, *a], *b]", "- !!python/object:x {}",
    "- {? [1] : 2}", "- 2001-99-99", "- !!binary x", "- <<: 3", "- {<<: [1]}", "%YAML 9", "- 0x_", "- 1:99:99.",
    "- {instance_dir: ~!}",
    "- [&a [x], " + ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghij")) + "]",
])  # fmt: skip


@fuzzed(60)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        (ANY | ENTRIES).map(lambda value: json.dumps(value).encode()), YAMLS.map(str.encode),
    ),
    DAMAGE,
)  # fmt: skip
def test_a_list_of_subjects_is_read_or_refused(folder: Path, content: bytes, damage: Damage) -> None:
    file = folder / "concepts.json"
    file.write_bytes(damaged(content, damage))
    try:
        for found in read_concepts(str(file)):
            assert found.instance_dir and found.token and found.class_word and found.repeats >= 1
    except UserError as refused:
        assert len(str(refused)) < 2000


def state(is_sealed: bool) -> bytes:
    told = {"update": 3, "settings": {"lr": 1e-4, "model": {"family": "x"}, "adapter": {"rank": None}}}
    with tempfile.TemporaryDirectory() as folder:
        (sealed.save if is_sealed else torch.save)(
            {"state_dict": {"w": torch.ones(3)}, "dreamlab": told}, file := Path(folder) / "state"
        )
        return file.read_bytes()


def zipped_with(name: str, content: bytes) -> bytes:
    """The state as a whole archive in which one file was replaced: damage that no checksum shows."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(STATE)) as old, zipfile.ZipFile(made, "w") as new:
        for item in old.namelist():
            new.writestr(item, content if item.endswith(name) else old.read(item))
    return made.getvalue()


STATE, SEALED = state(False), state(True)
PICKLE = next(
    zipfile.ZipFile(io.BytesIO(STATE)).read(n) for n in zipfile.ZipFile(io.BytesIO(STATE)).namelist() if "pkl" in n
)


@fuzzed(60)
@given(DAMAGE, st.sampled_from(["pickle", "archive", "sealed"]))
def test_a_resume_state_is_read_or_refused(folder: Path, damage: Damage, place: str) -> None:
    file = folder / "update-000003.ckpt"
    if place == "pickle":
        file.write_bytes(zipped_with("data.pkl", damaged(PICKLE, damage)))
    else:
        file.write_bytes(damaged(STATE if place == "archive" else SEALED, damage))
    try:
        found, about = _newest_readable([file])
        assert found == file and isinstance(about["update"], int) and isinstance(about["settings"], dict)
    except UserError as refused:
        note(str(refused))


ABOUT = {
    "base": {"family": "stable_diffusion", "source": "pocket"}, "parts": ["unet"], "update": 3, "dtype": "fp16",
    "adapter": {"kind": "lora", "rank": 4, "alpha": 4.0, "dropout": 0.0, "targets": ["to_q"], "train": ["unet"]},
}  # fmt: skip


@fuzzed(60)
@given(st.dictionaries(st.sampled_from([*ABOUT]), ANY, max_size=3), st.booleans(), DAMAGE)
def test_what_a_snapshot_says_is_read_or_refused(
    folder: Path, values: dict[str, Any], has_adapter: bool, damage: Damage
) -> None:
    about = {**ABOUT, **values}
    if not has_adapter and "adapter" not in values:
        del about["adapter"]
    (folder / "snapshot.json").write_bytes(damaged(json.dumps(about).encode(), damage))
    for name in ("unet", "pytorch_lora_weights"):
        (folder / f"{name}.safetensors").touch()
    try:
        read = read_about(folder)
        assert isinstance(read["base"]["source"], str) and all(isinstance(part, str) for part in read["parts"])
    except UserError as refused:
        note(str(refused))


def leaves(schema: type, prefix: str = "") -> dict[str, Any]:
    """Every setting in dotted form, and its type."""
    types, found = typing.get_type_hints(schema), {}
    for item in dataclasses.fields(schema):
        kind = types[item.name]
        found |= leaves(kind, f"{prefix}{item.name}.") if dataclasses.is_dataclass(kind) else {prefix + item.name: kind}
    return found


KINDS = {
    key: kind for key, kind in leaves(Train).items()
    if key not in ("out", "name", "cache_dir", "device", "token") and not key.startswith(("logger.", "eval."))
}  # fmt: skip
EXTREME = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, float("nan"), float("inf"), -0.0, 5e-324])


def strategy_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values that the schema lets through, and no more."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return st.lists(strategy_of(options[0]), max_size=3)
    if typing.get_origin(kind) is dict:
        return st.dictionaries(
            st.sampled_from(["_target_", "lr", "betas", "eps"]), SCALARS | st.lists(SCALARS), max_size=4
        )
    if options:
        return st.one_of(*map(strategy_of, options))
    if kind is Any:
        return SCALARS
    if kind is float:
        return st.floats() | EXTREME.map(float)
    if kind is int:
        return st.integers() | EXTREME.filter(lambda value: isinstance(value, int))
    words = st.sampled_from(
        ["", "auto", "never", "none", "{token}", "{class_word", "/", "~", "\0", "unet", "../..", "x" * 300]
    )
    return {bool: st.booleans(), type(None): st.none(), str: st.text(max_size=12) | words}[kind]


@fuzzed(40)
@given(st.lists(st.sampled_from([*KINDS]), min_size=1, max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: strategy_of(KINDS[key]) for key in keys})
))  # fmt: skip
def test_settings_are_right_or_refused(settings: Settings, values: dict[str, Any]) -> None:
    if not hasattr(test_settings_are_right_or_refused, "plain"):
        test_settings_are_right_or_refused.plain = settings()  # type: ignore[attr-defined]
    config = copy.deepcopy(test_settings_are_right_or_refused.plain)  # type: ignore[attr-defined]
    for key, value in values.items():
        *groups, name = key.split(".")
        node: Any = config
        for group in groups:
            node = getattr(node, group)
        setattr(node, name, value)
    try:
        checked, subject = check(config)
        assert checked.steps >= 1 and subject.photos
    except UserError as refused:
        assert str(refused)
    except OSError as refused:
        assert refused.errno in OF_THE_DISK, "the command makes a sentence of these"
