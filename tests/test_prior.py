"""Class images: made once per recipe, image k from its own seed, never mixed up with somebody else's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture
from PIL import Image

from dreamlab import prior
from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.photos import read_photo
from dreamlab.pictures import read_settings
from dreamlab.sample import Sampler
from dreamlab.subject import own_images

SAMPLER = Sampler("ddim", 2, 5.0, "", 64, 64)
PROMPT, SEED = "a photo of a dog", 1337


def made(model: Family, cache: Path, count: int, own: tuple[Path, ...] = (), **changes: object) -> list[Path]:
    """`count` class images of the recipe above with some of it changed."""
    recipe: dict = {"prompt": PROMPT, "sampler": SAMPLER, "seed": SEED, "precision": "fp32", "batch_size": 2, **changes}
    prompt, sampler, seed = recipe.pop("prompt"), recipe.pop("sampler"), recipe.pop("seed")
    return prior.class_images(
        model, prompt, count, sampler, seed, cache_dir=cache, own=own, device=torch.device("cpu"), **recipe
    )


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_a_second_call_draws_nothing_and_more_images_keep_the_first(model: Family, tmp_path: Path) -> None:
    first = made(model, tmp_path, 2)
    before, stamps = contents(first), [path.stat().st_mtime_ns for path in first]
    assert made(model, tmp_path, 2) == first
    assert [path.stat().st_mtime_ns for path in first] == stamps

    more = made(model, tmp_path, 3)
    assert more[:2] == first and contents(first) == before
    assert [path.stat().st_mtime_ns for path in first] == stamps
    assert read_settings(more[2]) == {
        "prompt": PROMPT, "seed": SEED + 2, "recipe": more[2].parent.name, "number": 2,
    }  # fmt: skip


def test_image_k_comes_from_its_own_seed_whatever_the_batch_size(model: Family, tmp_path: Path) -> None:
    pairs = made(model, tmp_path / "a", 3, batch_size=3)
    alone = made(model, tmp_path / "b", 3, batch_size=1)
    shifted = made(model, tmp_path / "c", 1, seed=SEED + 2)
    for one, other in [*zip(pairs, alone, strict=True), (pairs[2], shifted[0])]:
        difference = np.asarray(read_photo(one)).astype(int) - np.asarray(read_photo(other)).astype(int)
        assert np.abs(difference).max() <= 1  # batched and single convolutions round differently
    assert not np.array_equal(np.asarray(read_photo(pairs[0])), np.asarray(read_photo(pairs[1])))


def test_every_part_of_the_recipe_changes_the_folder(model: Family, tmp_path: Path) -> None:
    changes: list[dict] = [
        {}, {"prompt": "a photo of a cat"}, {"seed": 1}, {"precision": "bf16"},
        *({"sampler": replace(SAMPLER, **field)} for field in (
            {"name": "euler"}, {"steps": 3}, {"guidance": 4.0}, {"negative_prompt": "blurry"}, {"height": 32},
            {"width": 32},
        )),
    ]  # fmt: skip
    folders = [made(model, tmp_path, 1, **change)[0].parent for change in changes]
    with torch.no_grad():
        next(model.parts()["vae"].parameters()).view(-1)[0] += 1e-3
    assert model.fingerprint and model.fingerprint != prior.fingerprint(model.parts())
    model.fingerprint = prior.fingerprint(model.parts())
    folders.append(made(model, tmp_path, 1)[0].parent)
    assert len(set(folders)) == len(changes) + 1


def test_a_foreign_picture_is_refused_and_left_alone(model: Family, tmp_path: Path) -> None:
    first, second = made(model, tmp_path, 2)
    first.unlink()
    noise_picture(5).save(first)
    mine = first.read_bytes()
    with pytest.raises(UserError, match=r"was not made by this recipe.*class_dir"):
        made(model, tmp_path, 2)
    assert first.read_bytes() == mine

    first.write_bytes(second.read_bytes())  # right recipe, wrong number
    with pytest.raises(UserError, match="was not made by this recipe"):
        made(model, tmp_path, 2)


def test_a_truncated_picture_is_drawn_again_as_it_was(model: Family, tmp_path: Path) -> None:
    paths = made(model, tmp_path, 2)
    whole, before = contents(paths), np.asarray(read_photo(paths[1])).astype(int)
    paths[1].write_bytes(whole[1][:200])
    made(model, tmp_path, 2)
    assert paths[0].read_bytes() == whole[0]
    assert np.abs(np.asarray(read_photo(paths[1])) - before).max() <= 1  # drawn alone this time, see above


def test_own_class_images_come_first_and_are_never_written_to(model: Family, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(2):
        noise_picture(number).save(folder / f"{number}.jpg")
    (folder / "2.jpg").write_bytes(b"no picture")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    own = own_images(folder)
    assert [path.name for path in own] == ["0.jpg", "1.jpg"]

    assert made(model, tmp_path / "cache", 2, own=tuple(own)) == own
    assert not (tmp_path / "cache").exists()
    three = made(model, tmp_path / "cache", 3, own=tuple(own))
    assert three[:2] == own and Image.open(three[2]).size == (64, 64)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
