"""Prompt sets: the paper's counts, fields that can be filled in, nothing twice, and pocket's own words alone."""

import pytest
from transformers import CLIPTokenizer

from dreamlab.errors import UserError
from dreamlab.models import BUNDLED
from dreamlab.prompt_sets import (
    POCKET_CLASSES,
    POCKET_KINDS,
    SETS,
    PromptSet,
    find_set,
    is_live,
    unknown_to,
    without_token,
)
from dreamlab.prompts import fill
from dreamlab.words import checkable


@pytest.mark.parametrize(("name", "counts"), [("object", (20, 0, 5)), ("live", (10, 10, 5))])
def test_the_paper_asks_25_prompts(name: str, counts: tuple[int, int, int]) -> None:
    chosen = SETS[name]
    assert (len(chosen.far), len(chosen.accessories), len(chosen.properties)) == counts
    assert set(SETS["object"].far) & set(SETS["live"].far) == set(SETS["live"].far)


@pytest.mark.parametrize("chosen", SETS.values(), ids=SETS.keys())
def test_prompts_are_distinct_and_hold_the_right_fields(chosen: PromptSet) -> None:
    everything = [*chosen.subject_prompts(), *chosen.class_prompts, *chosen.unrelated]
    assert len(everything) == len(set(everything))
    assert all("{token} {class_word}" in prompt for prompt in chosen.subject_prompts())
    assert all("{class_word}" in prompt and "{token}" not in prompt for prompt in chosen.class_prompts)
    assert not any("{" in prompt for prompt in chosen.unrelated)
    assert all("{" not in fill(prompt, "zwx", "dog") for prompt in everything)


def test_a_class_that_pocket_has_never_seen_is_told_and_its_own_card_says_which_it_has() -> None:
    card = (BUNDLED["pocket"] / "README.md").read_text(encoding="utf-8")
    nouns, kinds = (text.split(", ") for text in card.split("**What it knows.** ")[1].split(".")[0:2])
    assert tuple(nouns) == POCKET_CLASSES
    assert {kind.split(": ")[-1].strip() for kind in kinds} >= set(POCKET_KINDS)
    known = [*nouns, *(kind.split(": ")[-1].strip() for kind in kinds), "Dog", "corgi dog"]
    assert [word for word in known if unknown_to("pocket", word)] == []
    said = unknown_to("pocket", "scar")
    assert said and "'scar'" in said and "teddy bear" in said and unknown_to("somebody/model", "scar") is None


def test_pocket_knows_every_word_of_its_set_and_pixels_answer_for_the_far_ones() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer")
    chosen = SETS["pocket"]
    for template in (*chosen.subject_prompts(), *chosen.class_prompts, *chosen.unrelated):
        prompt = fill(template, "zwx", "dog")
        assert len(tokenizer(prompt).input_ids) == len(prompt.split()) + 2, prompt
    asked = [checkable(template) for template in chosen.far]
    assert all(len(words) == 1 for words in asked) and len({words[0] for words in asked}) == 13


@pytest.mark.parametrize("word", ["dog", "corgi dog", "Cat", "woman", "lion", "butterfly"])
def test_live_class_words(word: str) -> None:
    assert is_live(word) and find_set("paper", word).accessories


@pytest.mark.parametrize(
    "word", ["backpack", "teapot", "teddy bear", "stuffed animal", "dog toy", "toy dog", "vase", ""]
)
def test_objects(word: str) -> None:
    assert not is_live(word) and len(find_set("paper", word).far) == 20


def test_unrelated_prompts_spare_the_class() -> None:
    assert "a photo of a lion" not in find_set("pocket", "lion").unrelated
    assert len(find_set("pocket", "lion").unrelated) == 7 and len(find_set("pocket", "dog").unrelated) == 8
    assert "a photo of a school bus" not in find_set("pocket", "bus").unrelated
    with pytest.raises(UserError, match="Did you mean 'object'"):
        find_set("objects", "vase")


@pytest.mark.parametrize(
    ("prompt", "bare"),
    [
        ("a photo of a zwx dog", "a photo of a dog"),
        ("a zwx orange in the snow", "an orange in the snow"),
        ("A zwx orange", "An orange"),
        ("zwx dog", "dog"),
        ("the zwx dog and a zwx dog", "the dog and a dog"),
        ("a red zwx dog", "a red dog"),
        ("a photo of zwx", "a photo of"),
        ("a zwxy dog", "a zwxy dog"),
        ("a photo of a dog", "a photo of a dog"),
    ],
)
def test_without_token(prompt: str, bare: str) -> None:
    assert without_token(prompt, "zwx") == bare


def test_without_a_token_of_two_words_or_odd_letters() -> None:
    assert without_token("an ohwx vexl dog", "ohwx vexl") == "a dog"
    assert without_token("a <s1> dog (zwx)", "<s1>") == "a dog (zwx)"
