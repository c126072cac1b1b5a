"""Words of a prompt that can be checked on the pixels of a sample, with no network in between.

"a sepia photo of ..." names an exact transform and "... on a green background" a colour that fills the border, so
whether a picture obeys such a word can be measured. pocket was trained on captions that these same functions made
true (experiments/pocket), which makes them an exact prompt fidelity for it: unlike CLIP-T, they have units.

Every picture here is a float tensor (N, 3, H, W) in [0, 1]. The limits were set on pictures of 64 px, pocket's size.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER_PX = 5
TINTS = {
    "sepia": (1.00, 0.78, 0.50),
    "purple": (0.72, 0.36, 1.00),
    "blue": (0.30, 0.58, 1.00),
    "green": (0.38, 1.00, 0.42),
}
STYLES = {  # style -> the words before the noun
    "black and white": "a black and white photo of",
    "sepia": "a sepia photo of",
    "purple": "a purple tinted photo of",
    "blue": "a blue tinted photo of",
    "green": "a green tinted photo of",
    "blurry": "a blurry photo of",
    "upside down": "an upside down photo of",
    "pencil sketch": "a pencil sketch of",
}
BACKGROUNDS = ("white", "black", "gray", "green", "blue", "brown")


@dataclass(frozen=True)
class Word:
    """A checkable part of a prompt: a style such as "sepia", or the colour of the background."""

    kind: str  # "style" or "background"
    name: str

    def obeyed(self, x: Tensor) -> Tensor:
        """Whether each picture obeys, (N,) bool."""
        return CHECKS[self.kind](x, self.name)


def checkable(prompt: str) -> list[Word]:
    """The words of `prompt` that `Word.obeyed` can judge, whatever their case; often none.

    "upside down" isn't among them: it takes a network to see.
    """
    text = " ".join(prompt.lower().split())
    found = []
    for style, words in STYLES.items():
        phrase = re.sub("^an? ", "", words)
        if style != "upside down" and re.search(rf"\b{phrase}\b", text):
            found.append(Word("style", style))
    colour = re.search(rf"\bon an? ({'|'.join(BACKGROUNDS)}) background\b", text)
    return [*found, Word("background", colour.group(1))] if colour else found


def luma(x: Tensor) -> Tensor:
    """Rec. 601 brightness (N, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value, each (N, H, W); a gray pixel has hue 0."""
    value, top = x.max(1)
    spread = value - x.amin(1)
    r, g, b = x.unbind(1)
    safe = spread.clamp_min(1e-6)
    hue = torch.stack([(g - b) / safe, (b - r) / safe + 2, (r - g) / safe + 4], 1).gather(1, top[:, None])[:, 0]
    return torch.where(spread < 1e-6, 0.0, hue * 60 % 360), spread / value.clamp_min(1e-6), value


def chroma(x: Tensor) -> Tensor:
    """Mean of max(RGB) - min(RGB), (N,): 0 for a picture without colour."""
    return (x.amax(1) - x.amin(1)).mean((1, 2))


def sharpness(x: Tensor) -> Tensor:
    """Variance of the Laplacian of the brightness, relative to the brightness' own variance, (N,)."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    gray = luma(x)
    return F.conv2d(gray, kernel).var((1, 2, 3)) / gray.var((1, 2, 3)).clamp_min(1e-4)


def tintedness(x: Tensor, tint: str) -> Tensor:
    """Share of a picture's pixels, weighted by brightness, whose hue lies within 25 degrees of the tint's, (N,)."""
    target = hsv(x.new_tensor(TINTS[tint])[None, :, None, None])[0]
    hue, saturation, value = hsv(x)
    near = ((hue - target + 180) % 360 - 180).abs() < 25
    return (near & (saturation > 0.15)).float().mul(value).mean((1, 2)) / value.mean((1, 2)).clamp_min(1e-4)


def border_colours(x: Tensor) -> Tensor:
    """Share of the border's pixels that carry each of BACKGROUNDS, (N, len(BACKGROUNDS))."""
    frame = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    frame[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    hue, s, v = (channel[:, frame] for channel in hsv(x))
    plain = s < 0.2
    shares = {
        "white": (v > 0.8) & plain,
        "black": v < 0.2,
        "gray": (v >= 0.3) & (v <= 0.75) & plain,
        "green": (hue > 60) & (hue < 170) & (s > 0.2) & (v >= 0.2),
        "blue": (hue > 180) & (hue < 260) & (s > 0.2) & (v >= 0.2),
        "brown": (hue > 8) & (hue < 48) & (s > 0.25) & (v >= 0.2) & (v < 0.7),
    }
    return torch.stack([shares[name].float().mean(1) for name in BACKGROUNDS], 1)


def obeys_background(x: Tensor, colour: str) -> Tensor:
    """Whether most of the border carries the colour, (N,) bool."""
    return border_colours(x)[:, BACKGROUNDS.index(colour)] > 0.5


def obeys_style(x: Tensor, style: str) -> Tensor:
    """Whether a picture obeys a photometric style word, (N,) bool. "upside down" needs the classifier instead."""
    if style == "black and white":
        return chroma(x) < 0.04
    if style == "pencil sketch":
        return (chroma(x) < 0.06) & (luma(x).mean((1, 2, 3)) > 0.75)
    if style == "blurry":
        return sharpness(x) < 0.04
    return tintedness(x, style) > 0.85


CHECKS: dict[str, Callable[[Tensor, str], Tensor]] = {"style": obeys_style, "background": obeys_background}
