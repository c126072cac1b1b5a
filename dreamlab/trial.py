"""Which identifier to take: the rarest and loneliest words of a vocabulary, tried on the untouched model.

    pull = |pred("a photo of a {token} {class}") - pred("a photo of a {class}")|^2 / |pred("a photo of a {class}")|^2

on the grid of probes.py over pictures that the model itself has drawn of the class, divided by the median pull of KNOWN
words: 1 is a word that says as much as they do, 0 one that says nothing. Of the shortlist (identifiers.py) the one with
the least pull is best. A word is warned of from the geometric mean of what rare words and known words pull, which is
where the model itself tells them apart. The search is cached under the hash of the weights and the class word. Called
by tokens.py and naming.py.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreamlab import prompts
from dreamlab.errors import UserError
from dreamlab.identifiers import LETTERS, Reading, Vocabulary, doubt, shortlist
from dreamlab.models import Family
from dreamlab.models.families import sampler_of
from dreamlab.photos import Region, crop
from dreamlab.prior import recipe_key, recipe_of, reference_images
from dreamlab.probes import Grid, Probe
from dreamlab.progress import progress
from dreamlab.runs import write_json
from dreamlab.sample import Sampler
from dreamlab.turns import one_at_a_time

KNOWN = ("beach", "black", "blue", "bus", "car", "cat", "coffee", "fish", "green", "orange")  # to any model
RARE = 8  # first of the shortlist, whose median pull is that of a rare word
APART = 4.0  # times: a model whose known words pull less than so many times a rare one's tells no words apart
PICTURES = 2  # of the class, which the quarters of the noise schedule take turns at
RULE = 1  # raise it where the rule changes: searches made by another are made again


@dataclass(frozen=True)
class Judged:
    """A word as it is read and what it does to the prediction, with what speaks against it."""

    reading: Reading
    pull: float  # in units of a known word's
    warning: str

    def as_json(self) -> dict[str, Any]:
        """Plain containers, the nearest words beside their cosines."""
        told = {key: value for key, value in asdict(self.reading).items() if key != "word"}
        return {"token": self.reading.word, "pull": self.pull, "warning": self.warning, **told}


def judged_from(row: dict[str, Any]) -> Judged:
    """What `as_json` has written."""
    neighbours = [(word, cosine) for word, cosine in row["neighbours"]]
    return Judged(Reading(row["token"], row["pieces"], row["rarity"], neighbours), row["pull"], row["warning"])


class Trial:
    """Tries words on an untouched model, as names of something of a class."""

    def __init__(self, model: Family, class_word: str, device: torch.device, cache_dir: Path, guidance: float) -> None:
        self.model, self.class_word, self.device, self.cache_dir = model, class_word, device, cache_dir
        side = model.default_resolution()
        self.sampler = Sampler(sampler_of(model.family), 20, guidance, "", side, side)
        self.vocabulary = Vocabulary(model)
        self._grid: Grid | None = None
        self._pulls: dict[str, float] = {}

    def pictures(self, identifiers: Sequence[str | None], count: int) -> list[list[Image.Image]]:
        """`count` pictures with each identifier, or of the class where it is None, from the same seeds."""
        asked = [self._prompt(word) for word in identifiers for _ in range(count)]
        paths = reference_images(
            self.model, asked, [*range(count)] * len(identifiers), self.sampler, cache_dir=self.cache_dir,
            device=self.device, precision="fp32", batch_size=4,
        )  # fmt: skip
        images = [Image.open(path).convert("RGB") for path in paths]
        return [images[start : start + count] for start in range(0, len(images), count)]

    def judge(self, readings: Sequence[Reading]) -> list[Judged]:
        """What each word does to the prediction, in the given order."""
        known = [word for word in KNOWN if word not in self.class_word.lower().split()]
        rare = [one.word for one in shortlist(self.vocabulary.candidates(LETTERS, self.class_word), RARE)]
        words = list(dict.fromkeys([*known, *rare, *(one.word for one in readings)]))
        with progress("words tried", len(words), unit="words") as advance:
            for word in words:
                self._try(word)
                advance(note=word)
        unit, least = (median([self._pulls[word] for word in some] or [1.0]) for some in (known, rare))
        limit = math.sqrt(least / unit) if unit >= APART * least else math.inf
        pulls = [self._pulls[one.word] / unit for one in readings]
        return [Judged(one, pull, _warning(one, pull, limit)) for one, pull in zip(readings, pulls, strict=True)]

    def search(self, letters: int, count: int) -> list[Judged]:
        """The shortlist, the best first; those with a warning come last. Read from the cache where it is there."""
        recipe = {
            **recipe_of(self.model, self.sampler, "fp32"), "class_word": self.class_word, "letters": letters,
            "shortlist": count, "rule": RULE,
        }  # fmt: skip
        folder = self.cache_dir / "tokens"
        file = folder / f"{recipe_key(recipe)}.json"
        with contextlib.nullcontext() if file.is_file() else one_at_a_time(folder):
            if not file.is_file():
                found = self._ranked(letters, count)
                write_json(file, {"recipe": recipe, "identifiers": [one.as_json() for one in found]})
        return [judged_from(row) for row in json.loads(file.read_text(encoding="utf-8"))["identifiers"]]

    def _ranked(self, letters: int, count: int) -> list[Judged]:
        candidates = self.vocabulary.candidates(letters, self.class_word)
        if not candidates:
            raise UserError(f"letters={letters}: no rare word of this vocabulary is so short. Allow more letters.")
        judged = self.judge(shortlist(candidates, count))
        return sorted(judged, key=lambda one: (bool(one.warning), one.pull, one.reading.word))

    def _try(self, word: str) -> None:
        if word not in self._pulls:
            self._pulls[word] = self._asked().moved_by(self.model.tokenize([self._prompt(word)]))

    def _prompt(self, word: str | None) -> str:
        return prompts.class_prompt(self.class_word) if word is None else prompts.instance_prompt(word, self.class_word)

    def _asked(self) -> Grid:
        """The grid over the class's pictures, which knows what the model says of them without any identifier."""
        if self._grid is None:
            (images,) = self.pictures([None], PICTURES)
            with torch.no_grad():
                latents = self.model.encode_images(self._pixels(images).to(self.device))[0].cpu()
            ids = self.model.tokenize([self._prompt(None)]).expand(PICTURES, -1)
            self._grid = Grid(
                self.model, [Probe("class", latents, ids, asks_loss=True)], self.model.encode_text, self.device,
                contextlib.nullcontext,
            )  # fmt: skip
            self._grid.remember()
        return self._grid

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The pictures `(N, 3, H, W)` in [-1, 1]."""
        return torch.stack([crop(image, Region(self.sampler.width, self.sampler.height)) * 2 - 1 for image in images])


def _warning(reading: Reading, pull: float, limit: float) -> str:
    told = [doubt(reading), "means something to this model" if pull >= limit else ""]
    return "; ".join(filter(None, told))
