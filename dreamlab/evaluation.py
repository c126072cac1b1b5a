"""Scores of one moment of a run: what its samples say of fidelity, copies, drift, and obedience to words.

`Shot`s are the pictures to draw: prompts of the subject in contexts near to and far from its photos, of its class, and
of unrelated things, each from a seed of its own. `score` compares them with the subject's photos and with what the
untouched model draws from the very same noise. All numbers come from metrics.py. Called by evaluate.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamlab.encoders import Encoder
from dreamlab.estimates import Estimate, estimate_mean
from dreamlab.metrics import (
    collapse,
    distances,
    diversity,
    drift,
    fidelity,
    memorisation,
    preservation_change,
    prompt_fidelity,
)
from dreamlab.prompt_sets import without_token
from dreamlab.words import checkable

SUBJECT = ("near", "far")  # kinds of shots that show the subject


@dataclass(frozen=True)
class Shot:
    """One picture to draw."""

    prompt: str
    kind: str  # near | far | class | unrelated
    seed: int
    concept: int = 0  # which subject it is about
    token: str = ""


@dataclass(frozen=True)
class Photos:
    """One subject's photos, cut and scaled as the samples are."""

    learnt: list[Image.Image]
    held_out: list[Image.Image]


@dataclass(frozen=True)
class Scores:
    """`numbers` by name (`eval/dino`, `eval/dino_low`, ...), and a row of plain values for each shot."""

    numbers: dict[str, float]
    shots: list[dict[str, Any]]


class Judge:
    """Both encoders and the photos' features, which every moment of a run is compared with."""

    def __init__(self, dino: Encoder, clip: Encoder, photos: Sequence[Photos]) -> None:
        self.dino, self.clip = dino, clip
        self.learnt = [(dino.images(one.learnt), clip.images(one.learnt)) for one in photos]
        self.held_out = [dino.images(one.held_out) if one.held_out else None for one in photos]

    def recipe(self) -> dict[str, Any]:
        """What made the features."""
        return {"dino": self.dino.recipe(), "clip": self.clip.recipe()}

    def ceiling(self) -> float | None:
        """DINO between the photos themselves, the mean over pairs of different photos; None for single photos."""
        pairs = []
        for features, _ in self.learnt:
            apart = distances(features)
            pairs += (1 - apart[~torch.eye(len(apart), dtype=torch.bool)]).tolist()
        return float(np.mean(pairs)) if pairs else None

    def score(self, shots: Sequence[Shot], images: Sequence[Image.Image], base: Sequence[Image.Image]) -> Scores:
        """Compare `images` with the photos and with `base`, the untouched model's pictures of the same shots."""
        features, before = self.dino.images(images), self.dino.images(base)
        rows: list[dict[str, Any]] = [asdict(shot) for shot in shots]
        numbers: dict[str, float] = {}
        subject = [k for k, shot in enumerate(shots) if shot.kind in SUBJECT]
        if subject:
            numbers |= self._subject(shots, subject, images, features, rows)
        of_class = [k for k, shot in enumerate(shots) if shot.kind == "class"]
        if of_class:
            numbers |= self._class(shots, of_class, features, before)
        unrelated = [k for k, shot in enumerate(shots) if shot.kind == "unrelated"]
        if unrelated:
            moved = drift(features[unrelated], before[unrelated])
            numbers |= _told("drift_unrelated", estimate_mean(moved, _prompts(shots, unrelated)))
        for row, moved in zip(rows, drift(features, before).tolist(), strict=True):
            row["drift"] = moved
        ceiling = self.ceiling()
        if ceiling is not None:
            numbers["eval/dino_photos"] = ceiling
        return Scores(numbers, rows)

    def _subject(
        self, shots: Sequence[Shot], index: list[int], images: Sequence[Image.Image], features: Tensor,
        rows: list[dict[str, Any]],
    ) -> dict[str, float]:  # fmt: skip
        """DINO, CLIP-I, CLIP-T, DIV, copies and obeyed words of the subject's pictures; each shot's own into `rows`."""
        pictures = [images[k] for k in index]
        clip_features = self.clip.images(pictures)
        texts = self.clip.texts([without_token(shots[k].prompt, shots[k].token) for k in index])
        told = prompt_fidelity(clip_features, texts)
        dino, clip_i = torch.zeros(len(index)), torch.zeros(len(index))
        copies, excess = 0, []
        for number, ((photos, clip_photos), held_out) in enumerate(zip(self.learnt, self.held_out, strict=True)):
            own = [place for place, k in enumerate(index) if shots[k].concept == number]
            if not own:
                continue
            dino[own] = fidelity(features[[index[place] for place in own]], photos)
            clip_i[own] = fidelity(clip_features[own], clip_photos)
            found = memorisation(features[[index[place] for place in own]], photos, held_out)
            copies += found.copies
            excess += [found.excess.value] if found.excess else []
            for row, place in enumerate(own):
                rows[index[place]] |= {
                    "nearest_photo": int(found.nearest[row]), "similarity": float(found.similarity[row]),
                    "p_value": float(found.p_value[row]), "is_copy": bool(found.is_copy[row]),
                }  # fmt: skip
        for place, k in enumerate(index):
            rows[k] |= {"dino": float(dino[place]), "clip_i": float(clip_i[place]), "clip_t": float(told[place])}
        groups = _prompts(shots, index)
        numbers = {"eval/copies": copies / len(index)}
        if excess:
            numbers["eval/nearness"] = float(np.mean(excess))
        for name, scores in (("dino", dino), ("clip_i", clip_i), ("clip_t", told)):
            numbers |= _told(name, estimate_mean(scores, groups))
        near = [place for place, k in enumerate(index) if shots[k].kind == "near"]
        if near:  # in other styles even a perfect likeness is unlike a photo
            numbers |= _told("dino_near", estimate_mean(dino[near]))
        spread = diversity(distances(features[index]), groups)
        if len(spread):
            numbers |= _told("div", estimate_mean(spread))
        return numbers | self._words(shots, index, pictures, rows)

    def _words(
        self, shots: Sequence[Shot], index: list[int], images: Sequence[Image.Image], rows: list[dict[str, Any]]
    ) -> dict[str, float]:
        """The share of checkable words that are obeyed; nothing where no prompt has any."""
        obeyed = []
        for k, image in zip(index, images, strict=True):
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
            answers = {word.name: bool(word.obeyed(pixels)[0]) for word in checkable(shots[k].prompt)}
            if answers:
                rows[k]["words"] = answers
                obeyed += list(answers.values())
        return _told("words", estimate_mean(torch.tensor(obeyed).float())) if obeyed else {}

    def _class(self, shots: Sequence[Shot], index: list[int], features: Tensor, before: Tensor) -> dict[str, float]:
        """PRES, what it was before, drift and collapse of the class's pictures."""
        pres, was, change = (torch.zeros(len(index)) for _ in range(3))
        for number, (photos, _) in enumerate(self.learnt):
            own = [place for place, k in enumerate(index) if shots[k].concept == number]
            picked = [index[place] for place in own]
            if own:
                pres[own], was[own] = fidelity(features[picked], photos), fidelity(before[picked], photos)
                change[own] = preservation_change(features[picked], before[picked], photos)
        moved = drift(features[index], before[index])
        numbers = {
            **_told("pres", estimate_mean(pres)), "eval/pres_base": float(was.mean()),
            **_told("pres_change", estimate_mean(change)), **_told("drift_class", estimate_mean(moved)),
        }  # fmt: skip
        first = [k for k in index if shots[k].prompt == shots[index[0]].prompt]
        if len(first) > 2:
            numbers |= _told("collapse", collapse(distances(features[first]), distances(before[first])))
        return numbers


def _prompts(shots: Sequence[Shot], index: Sequence[int]) -> Tensor:
    """Which prompt each shot has, `(N,)` int64: the unit that intervals resample."""
    known = {prompt: number for number, prompt in enumerate(dict.fromkeys(shots[k].prompt for k in index))}
    return torch.tensor([known[shots[k].prompt] for k in index])


def _told(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as numbers to log; an interval that isn't there is left out."""
    numbers = {f"eval/{name}": estimate.value}
    if estimate.low is not None and estimate.high is not None:
        numbers |= {f"eval/{name}_low": estimate.low, f"eval/{name}_high": estimate.high}
    return numbers
