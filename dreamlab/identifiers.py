"""What a word is to a model's tokenizer: how rare, how lonely, and whether it is one token at all.

A DreamBooth identifier should have a weak meaning in both the text encoder and the denoiser (arXiv 2208.12242,
section 3.2); the paper takes rare tokens of its tokenizer. Here everything is read off the vocabulary and the table of
token embeddings; what a word does to a prediction is trial.py's business.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamlab.errors import UserError
from dreamlab.models import Family, vocabulary

LETTERS = 4  # of an identifier, at most
COMMON = 0.5  # of the vocabulary's words: the more frequent ones
ORDINARY_LETTERS = 3  # shorter ones are mostly pieces of words
NEIGHBOURS = 5
LOADED = {  # identifiers that look empty and aren't, to models that learnt from the web, with who has found it
    "sks": "a rifle",  # the tutorials' own: guns in the pictures, XavierXiao/Dreambooth-Stable-Diffusion issue 71
    "bnha": "an anime",  # these and the next two are read off the rare end of CLIP's own vocabulary
    "dbz": "an anime",
    "jap": "a slur",
    "nips": "a slur",
}


@dataclass(frozen=True)
class Reading:
    """How a model reads a word; `neighbours` are frequent words and the cosine between the embeddings."""

    word: str
    pieces: list[str]
    rarity: float | None  # share of the vocabulary's words that are more frequent; None: it isn't one token
    neighbours: list[tuple[str, float]]

    @property
    def nearness(self) -> float:
        """The cosine with the nearest frequent word."""
        return self.neighbours[0][1] if self.neighbours else 0.0


class Vocabulary:
    """The words that are one token to `model`, from the most to the least frequent, and where they lie."""

    def __init__(self, model: Family) -> None:
        self.model = model
        known = {word: number for word, number in vocabulary.words(model).items() if re.fullmatch("[a-z]+", word)}
        self.words = sorted(known, key=known.__getitem__)
        self._ids = [known[word] for word in self.words]
        table = vocabulary.token_embeddings(model)
        self._centre = table.mean(0)  # all have it in common, so that without it cosines tell more
        self._table = table
        frequent = self.words[: int(COMMON * len(self.words))]
        self.ordinary = [word for word in frequent if len(word) >= ORDINARY_LETTERS]
        self._ordinary_ids = torch.tensor([known[word] for word in self.ordinary], dtype=torch.int64)

    def read(self, words: Sequence[str]) -> list[Reading]:
        """How each of `words` is read; a word of several pieces lies at their mean. UserError for no word at all."""
        split = [vocabulary.pieces(self.model, word) for word in words]
        for word, pieces in zip(words, split, strict=True):
            if not pieces:
                raise UserError(f"token={word!r} is nothing to this model's tokenizer. Give a word such as zwx.")
        if not words:
            return []
        places = torch.stack([self._table[[number for _, number in pieces]].mean(0) for pieces in split])
        cosines = self._cosines(places)
        for row, pieces in enumerate(split):
            cosines[row, torch.isin(self._ordinary_ids, torch.tensor([number for _, number in pieces]))] = -1  # itself
        nearest = cosines.topk(min(NEIGHBOURS, len(self.ordinary)), dim=1)
        rows = zip(words, split, nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        return [
            Reading(
                word, [text for text, _ in pieces], self._rarity(pieces),
                [(self.ordinary[index], round(value, 3)) for value, index in zip(values, indices, strict=True)],
            )
            for word, pieces, values, indices in rows
        ]  # fmt: skip

    def _cosines(self, places: Tensor) -> Tensor:
        """Cosine of each of `places` `(N, d)` with each ordinary word `(N, words)`."""
        ordinary = self._table[self._ordinary_ids] - self._centre
        return F.normalize(places - self._centre, dim=1) @ F.normalize(ordinary, dim=1).T

    def _rarity(self, pieces: Sequence[tuple[str, int]]) -> float | None:
        if len(pieces) > 1:
            return None
        return bisect_left(self._ids, pieces[0][1]) / len(self._ids)

    def candidates(self, letters: int, class_word: str) -> list[Reading]:
        """Every word of 2 to `letters` letters that is one token and none of the frequent half."""
        taken = set(class_word.lower().split())
        found = [word for word in self.words if 2 <= len(word) <= letters and word not in taken]
        return [
            reading for reading in self.read(found)
            if reading.rarity is not None and reading.rarity >= COMMON and reading.pieces == [reading.word]
        ]  # fmt: skip


def shortlist(readings: Sequence[Reading], count: int) -> list[Reading]:
    """The `count` readings whose places among the rarest and among the loneliest add up to least."""
    by_rarity = {reading.word: place for place, reading in enumerate(sorted(readings, key=_frequent_last))}
    lonely = sorted(readings, key=lambda reading: (reading.nearness, reading.word))
    by_loneliness = {reading.word: place for place, reading in enumerate(lonely)}
    return sorted(readings, key=lambda one: (by_rarity[one.word] + by_loneliness[one.word], one.word))[:count]


def _frequent_last(reading: Reading) -> float:
    return -(reading.rarity or 0.0)


def doubt(reading: Reading) -> str:
    """What speaks against a word as it is read, in a few words; empty where nothing does."""
    if len(reading.pieces) > 1:
        return f"is {len(reading.pieces)} tokens ({' + '.join(reading.pieces)})"
    if reading.word.lower() in LOADED:
        return f"means {LOADED[reading.word.lower()]} to models that learnt from the web"
    if reading.rarity is not None and reading.rarity < COMMON:
        return "is a common word"
    return ""
