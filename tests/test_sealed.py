"""A sealed archive is PyTorch's to every reader, and one changed byte is found, wherever it lies."""

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlab import sealed

CONTENT = {"w": torch.arange(1000.0), "half": torch.ones(7, dtype=torch.bfloat16), "told": {"update": 3}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "state.ckpt"
    sealed.save(CONTENT, path)
    return path


@pytest.mark.parametrize("mmap", [True, False])
def test_it_is_read_as_it_was(whole: Path, mmap: bool) -> None:
    read = torch.load(whole, weights_only=True, mmap=mmap)
    assert sealed.is_intact(whole)
    assert torch.equal(read["w"], CONTENT["w"]) and torch.equal(read["half"], CONTENT["half"])
    assert read["told"] == CONTENT["told"]


@settings(max_examples=60, derandomize=True, database=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_one_changed_byte_before_the_table_of_contents_is_found(whole: Path, place: float, change: int) -> None:
    with zipfile.ZipFile(whole) as archive:
        end = archive.start_dir
    content = bytearray(whole.read_bytes())
    content[int(place * end)] ^= change
    harmed = whole.with_name("harmed.ckpt")
    harmed.write_bytes(content)
    assert not sealed.is_intact(harmed)


def test_two_tensors_that_changed_places_are_found(whole: Path) -> None:
    content = whole.read_bytes()
    with zipfile.ZipFile(whole) as archive:
        table = content[archive.start_dir :]
    swapped = table.replace(b"/data/0", b"/data/x").replace(b"/data/1", b"/data/0").replace(b"/data/x", b"/data/1")
    assert swapped != table
    harmed = whole.with_name("swapped.ckpt")
    harmed.write_bytes(content[: -len(table)] + swapped)
    assert not sealed.is_intact(harmed)


def test_what_pytorch_wrote_alone_is_held_to_its_own_checksums(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    torch.save(CONTENT, path)
    assert sealed.is_intact(path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.tensor([500.0, 501.0]).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    assert not sealed.is_intact(path)


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    path.write_bytes(b"nothing")
    with pytest.raises(zipfile.BadZipFile):
        sealed.is_intact(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu_arrive_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    found = [torch.randn(2**size + 3, device="cuda") for size in (4, 12, 22, 25)]
    sealed.save(found, path)
    assert sealed.is_intact(path)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, torch.load(path, map_location="cpu"), strict=True))
