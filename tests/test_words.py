"""Words that can be checked, on pictures of which the answer is known."""

import pytest
import torch
from torch import Tensor

from dreamlab.words import BACKGROUNDS, STYLES, TINTS, Word, border_colours, checkable, luma, obeys_style

GROUNDS = {
    "white": (0.95, 0.95, 0.93), "black": (0.05, 0.05, 0.08), "gray": (0.5, 0.52, 0.5),
    "green": (0.2, 0.6, 0.2), "blue": (0.2, 0.3, 0.8), "brown": (0.5, 0.3, 0.15),
}  # fmt: skip


def noise(seed: int = 0, n: int = 3) -> Tensor:
    """Sharp, colourful pictures `(n, 3, 64, 64)`."""
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def styled(style: str) -> Tensor:
    """What deserves the word."""
    if style == "black and white":
        return luma(noise()).expand(-1, 3, -1, -1)
    if style == "pencil sketch":
        return luma(noise()).expand(-1, 3, -1, -1) * 0.2 + 0.8
    if style == "blurry":
        return torch.nn.functional.interpolate(noise()[:, :, :4, :4], size=64, mode="bicubic").clamp(0, 1)
    return luma(noise()) * torch.tensor(TINTS[style])[:, None, None]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "upside down"])
def test_a_style_is_obeyed_by_what_deserves_it_and_by_no_colourful_noise(style: str) -> None:
    assert obeys_style(styled(style), style).all()
    assert not obeys_style(noise(), style).any()


def test_tints_are_told_apart() -> None:
    for tint in TINTS:
        for other in TINTS:
            assert obeys_style(styled(tint), other).all() == (tint == other)


@pytest.mark.parametrize("colour", BACKGROUNDS)
def test_a_background_is_the_colour_of_the_border_whatever_stands_inside(colour: str) -> None:
    picture = torch.tensor(GROUNDS[colour])[None, :, None, None].repeat(2, 1, 64, 64)
    picture[:, :, 8:-8, 8:-8] = noise(n=2)[:, :, 8:-8, 8:-8]
    for other in BACKGROUNDS:
        assert Word("background", other).obeyed(picture).tolist() == [other == colour] * 2
    assert border_colours(picture).shape == (2, len(BACKGROUNDS))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a photo of a zwx dog", []),
        ("a sepia photo of a zwx dog", [("style", "sepia")]),
        ("Black and white photo of dog", [("style", "black and white")]),
        ("a pencil sketch of a cat on a  green background", [("style", "pencil sketch"), ("background", "green")]),
        ("a purple zwx dog in the snow", []),
        ("an upside down photo of a dog", []),
        ("a dog on a red background", []),
    ],
)
def test_the_checkable_words_of_a_prompt(prompt: str, words: list[tuple[str, str]]) -> None:
    assert [(word.kind, word.name) for word in checkable(prompt)] == words


def test_every_style_and_background_but_upside_down_is_checkable() -> None:
    for style, opening in STYLES.items():
        wanted = [] if style == "upside down" else [Word("style", style)]
        assert checkable(f"{opening} a dog") == wanted
    assert all(checkable(f"a dog on a {c} background") == [Word("background", c)] for c in BACKGROUNDS)
