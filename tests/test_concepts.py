"""Several subjects in one run, captions of single photos, masks: what is read, and what is refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings, TrainRun, noise_picture
from PIL import Image

from dreamlab import assemble, feed
from dreamlab.checks import check
from dreamlab.concepts import read_concepts
from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.resume import Start


def photo_folder(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        noise_picture(first + number).save(folder / f"{number}.png")
    return folder


def concepts_file(folder: Path, name: str, entries: Any) -> Path:
    file = folder / name
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return file


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, str]]:
    """The tutorial's list for a dog of two photos and a teapot of three; the folder of its class images is missing."""
    photo_folder(tmp_path / "rex", 2)
    photo_folder(tmp_path / "pot", 3, first=10)
    return [
        {"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog",
         "instance_data_dir": str(tmp_path / "rex"), "class_data_dir": str(tmp_path / "data" / "dog")},
        {"instance_prompt": "photo of xjy teapot", "class_prompt": "photo of a teapot",
         "instance_data_dir": "pot", "class_data_dir": ""},
    ]  # fmt: skip


def multi(settings: Settings, file: Path, *more: str) -> Any:
    """A tiny run's settings for a concepts file: the fixture's own subject is left out."""
    return settings("instance_dir=demo", "class_word=null", f"concepts={file}", *more)


def test_the_tutorials_list_is_two_subjects_with_their_words_read_off_the_prompts(
    settings: Settings, tmp_path: Path, two: list[dict[str, str]]
) -> None:
    _, subject = check(multi(settings, concepts_file(tmp_path, "concepts_list.json", two)))
    dog, pot = subject.concepts
    assert (dog.token, dog.class_word, len(dog.photos), dog.own) == ("zwx", "dog", 2, [])
    assert (pot.token, pot.class_word, len(pot.photos)) == ("xjy", "teapot", 3)
    assert [photo.prompt for photo in pot.photos] == ["photo of xjy teapot"] * 3
    assert subject.sample_prompts == ["a photo of a zwx dog", "a photo of a xjy teapot"]


def test_yaml_says_the_same(settings: Settings, tmp_path: Path, two: list[dict[str, str]]) -> None:
    text = "".join(
        f"- instance_dir: {one['instance_data_dir']}\n  instance_prompt: {one['instance_prompt']}\n"
        f"  class_prompt: {one['class_prompt']}\n" for one in two
    )  # fmt: skip
    one = check(multi(settings, concepts_file(tmp_path, "concepts.yaml", text)))[1]
    other = check(multi(settings, concepts_file(tmp_path, "concepts_list.json", two)))[1]
    assert one.digest == other.digest


@pytest.mark.slow
def test_both_are_trained_with_class_images_of_their_own(
    train_run: TrainRun, settings: Settings, tmp_path: Path, two: list[dict[str, str]]
) -> None:
    file = concepts_file(tmp_path, "concepts_list.json", two)
    config, subject = check(multi(settings, file, "num_prior_images=2", "batch_size=2"))
    model = assemble.base_model(config)
    sets = feed.image_sets(config, subject, model)
    assert [len(images.items) for images in sets] == [5, 4]
    prompts = model.tokenize(["photo of a dog", "photo of a teapot"]).tolist()
    assert [item.input_ids.tolist() for item in sets[1].items] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    batches = iter(feed.batches(config, sets, Start(""), assemble.module(config, model)))
    seen = {tuple(row) for _ in range(5) for row in next(batches).input_ids[:2].tolist()}
    assert seen == {tuple(row) for row in model.tokenize(["photo of zwx dog", "photo of xjy teapot"]).tolist()}

    run = train_run("instance_dir=demo", "class_word=null", f"concepts={file}", "num_prior_images=2")
    assert run.path.name.startswith("zwx-dog-xjy-teapot-")
    assert [concept["token"] for concept in run.read_card()["concepts"]] == ["zwx", "xjy"]


def test_repeats_show_a_subjects_photos_more_often(settings: Settings, tmp_path: Path, two: Any) -> None:
    two[0]["repeats"] = 3
    config, subject = check(multi(settings, concepts_file(tmp_path, "c.json", two), "prior=none"))
    (images,) = feed.image_sets(config, subject, assemble.base_model(config))
    assert len(images.items) == 2 * 3 + 3


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "no list of subjects"),
        ('{"a": 1}', "no list of subjects"),
        ("[3]", "no object with keys"),
        ([{"instance_dirr": "x"}], "Did you mean 'instance_dir'?"),
        ([{"token": "zwx"}], "no instance_dir"),
        ([{"instance_dir": 5}], "it must be text"),
        ([{"instance_dir": "x", "token": "zwx", "class_word": "dog", "repeats": 0}], "repeats is 0"),
        ([{"instance_dir": "x", "instance_prompt": "my dog", "class_prompt": "a cat"}], "can't be read off"),
        ([{"instance_dir": "x"}], "can't be read off"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, entries: Any, said: str) -> None:
    with pytest.raises(UserError, match="concepts=") as error:
        read_concepts(str(concepts_file(tmp_path, "c.json", entries)))
    assert said in str(error.value)


def test_one_token_for_two_subjects_and_two_ways_to_say_one_are_refused(
    settings: Settings, tmp_path: Path, two: list[dict[str, str]]
) -> None:
    two[1]["instance_prompt"] = "photo of zwx teapot"
    file = concepts_file(tmp_path, "c.json", two)
    with pytest.raises(UserError, match="share a token"):
        check(multi(settings, file))
    with pytest.raises(UserError, match="leave out instance_dir"):
        check(settings(f"concepts={file}"))


def test_a_caption_is_its_photos_prompt_and_part_of_the_digest(settings: Settings, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "mine", 3)
    (folder / "0.txt").write_text("a {token} {class_word}\n asleep")
    (folder / "1.png.txt").write_text("zwx running", encoding="utf-8-sig")
    given = f"instance_dir={folder}"
    _, subject = check(settings(given))
    prompts = [photo.prompt for photo in subject.concepts[0].photos]
    assert prompts == ["a zwx dog asleep", "zwx running", "a photo of a zwx dog"]
    _, without = check(settings(given, "data.captions=false"))
    assert [photo.prompt for photo in without.concepts[0].photos] == ["a photo of a zwx dog"] * 3
    assert subject.digest != without.digest
    for text, said in (("", "is empty"), ("a {dog}", "{dog}")):
        (folder / "0.txt").write_text(text)
        with pytest.raises(UserError, match=said):
            check(settings(given))
    (folder / "0.txt").write_bytes(b"\xff\xfe\x00d")
    with pytest.raises(UserError, match=r"0\.txt cannot be read as UTF-8"):
        check(settings(given))


def test_a_prompt_that_is_cut_short_is_told(
    settings: Settings, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, subject = check(settings("prior=none", f"instance_prompt='a {'very ' * 40}small zwx dog'"))
    feed.image_sets(config, subject, assemble.base_model(config))
    assert "is cut to 24" in " ".join(capsys.readouterr().err.split())


def test_own_class_images_have_captions_too_and_count_towards_the_number(
    settings: Settings, tmp_path: Path, model: Family
) -> None:
    own = photo_folder(tmp_path / "dogs", 1)
    (own / "0.txt").write_text("a brown dog")
    config, subject = check(settings(f"class_dir={own}"))
    prior = feed.image_sets(config, subject, model)[1]
    expected = model.tokenize(["a brown dog", "a photo of a dog"]).tolist()
    assert [item.input_ids.tolist() for item in prior.items] == expected


def test_a_mask_is_found_by_its_name_and_is_no_photo(settings: Settings, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "mine", 2)
    Image.new("L", (80, 64), 255).save(folder / "0.mask.png")
    Image.new("L", (40, 32), 255).save(folder / "1-masklabel.png")
    _, subject = check(settings(f"instance_dir={folder}", "data.mask=file"))
    found = [(photo.path.name, photo.mask.name if photo.mask else None) for photo in subject.concepts[0].photos]
    assert found == [("0.png", "0.mask.png"), ("1.png", "1-masklabel.png")]
    assert check(settings(f"instance_dir={folder}"))[1].digest != subject.digest


def test_a_mask_of_another_shape_a_broken_one_and_none_at_all_are_named(settings: Settings, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "mine", 1)
    given = (f"instance_dir={folder}", "data.mask=file")
    with pytest.raises(UserError, match=r"has a mask beside it, such as 0\.mask\.png"):
        check(settings(*given))
    with pytest.raises(UserError, match="transparent"):
        check(settings(given[0], "data.mask=alpha"))
    Image.new("L", (64, 80), 255).save(folder / "0.mask.png")
    with pytest.raises(UserError, match="64x80 px"):
        check(settings(*given))
    (folder / "0.mask.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.mask\.png cannot be read"):
        check(settings(*given))
