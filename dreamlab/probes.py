"""Cheap probes of a run: no sampling, only denoising on a fixed grid, always beside the untouched model.

Two questions, each asked of the same pictures, timesteps and noise at every moment of every run:

    loss(set) / loss_0(set)             how well are these pictures denoised, against the untouched model (index 0)?
    |pred - pred_0|^2 / |pred_0|^2      how far has the prediction moved, whatever the truth is? (functional drift)

The first of training photos falls as they are learnt; of held-out photos of the subject it falls as the subject is
learnt, and rises again where the photos are memorised; of class images outside the prior set it tells class drift. The
second is asked with the class prompt, unrelated prompts and no prompt. No random state is touched, so training is the
same bit for bit with and without. Called by train.py; the pictures come from measuring.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from dreamlab.callbacks import Updates
from dreamlab.diffusion import add_noise, target
from dreamlab.loss import per_sample_error
from dreamlab.models import Conditioning, Family, evaluating
from dreamlab.randomness import Use, generator
from dreamlab.runlog import RunLog

QUARTERS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # of the noise schedule: the middle of each
SEED = 0  # not the run's: probes are comparable between runs


@dataclass(frozen=True)
class Probe:
    """Pictures under a prompt each: `latents` `(N, C, h, w)`, the posterior's means, and `input_ids` `(N, L)`."""

    name: str
    latents: Tensor
    input_ids: Tensor
    asks_loss: bool  # or only how far the prediction has moved


def places(probe: Probe) -> list[tuple[int, int]]:
    """What is asked of a probe: pairs of picture and place of QUARTERS, the pictures taking turns.

    A forward pass of the denoiser each, which is all that a probe costs: experiments/probe-overhead.
    """
    asked = range(len(QUARTERS)) if probe.asks_loss else range(1, len(QUARTERS), 2)
    return [(turn % len(probe.latents), place) for turn, place in enumerate(asked)]


def fixed_noise(shape: Sequence[int], picture: int, place: int) -> Tensor:
    """Noise of `shape`, a function of picture and place alone."""
    drawn = generator(SEED, Use.PROBE, place, picture).standard_normal(tuple(shape), dtype="float32")
    return torch.from_numpy(drawn)


@dataclass(frozen=True)
class Question:
    """One batch for the model, `(N, ...)` with a row for each of a probe's places, and the right answer."""

    probe: Probe
    input_ids: Tensor
    told: Tensor  # what the model is told as timesteps
    noisy_latents: Tensor
    target: Tensor


class Grid:
    """All probes of a run over its model, with what the untouched model says once `remember()` has been called."""

    def __init__(
        self, model: Family, probes: Sequence[Probe], text: Callable[[Tensor], Conditioning], device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:  # fmt: skip
        self.model, self.text, self.device, self.autocast = model, text, device, autocast
        self.questions = [self._question(probe) for probe in probes]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Keep the untouched model's predictions."""
        self._before = [self._predict(question) for question in self.questions]

    def ask(self) -> dict[str, float]:
        """`probe/<name>_drift` of every probe and `probe/<name>_loss` of some: 0 and 1 where nothing has changed."""
        return self._compare([self._predict(question) for question in self.questions])

    def untouched(self) -> dict[str, float]:
        """What `ask` finds before the first update, without asking again."""
        return self._compare(self._before)

    def moved_by(self, input_ids: Tensor) -> float:
        """How far the first probe's prediction moves under another prompt `(1, L)`, from what `remember` has kept."""
        asked = replace(self.questions[0], input_ids=input_ids.expand(len(self.questions[0].told), -1))
        return _moved(self._predict(asked), self._before[0]).mean().item()

    def _compare(self, answers: Sequence[Tensor]) -> dict[str, float]:
        found = {}
        for question, now, before in zip(self.questions, answers, self._before, strict=True):
            name, wanted = question.probe.name, question.target
            found[f"probe/{name}_drift"] = _moved(now, before).mean().item()
            if question.probe.asks_loss:
                ratios = per_sample_error(now, wanted) / per_sample_error(before, wanted)
                found[f"probe/{name}_loss"] = ratios.mean().item()
        return found

    def _question(self, probe: Probe) -> Question:
        asked, schedule = places(probe), self.model.schedule
        index = torch.tensor([picture for picture, _ in asked])
        latents = probe.latents[index]
        noise = torch.stack([fixed_noise(latents.shape[1:], picture, place) for picture, place in asked])
        timesteps = torch.tensor([int(QUARTERS[place] * len(schedule)) for _, place in asked])
        noisy_latents = add_noise(latents, noise, timesteps, schedule)
        wanted = target(latents, noise, timesteps, schedule)
        return Question(probe, probe.input_ids[index], schedule.told[timesteps], noisy_latents, wanted)

    def _predict(self, question: Question) -> Tensor:
        """The model's prediction `(N, C, h, w)`, float32 on the CPU."""
        with evaluating(self.model.parts().values()), self.autocast():
            text = self.text(question.input_ids.to(self.device))
            told = question.told.to(self.device)
            pred = self.model.predict(question.noisy_latents.to(self.device), told, text)
        return pred.float().cpu()


def _moved(now: Tensor, before: Tensor) -> Tensor:
    """|now - before|^2 / |before|^2 of each row `(N,)`."""
    return (now - before).square().flatten(1).mean(1) / before.square().flatten(1).mean(1)


class Probes(Updates):
    """Asks the grid at given updates; one line of probes.jsonl each."""

    def __init__(self, log: RunLog, grid: Grid, updates: set[int]) -> None:
        self.runlog, self.grid, self.updates = log, grid, updates

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        if trainer.is_global_zero and update in self.updates:
            self.take(update)

    def take(self, update: int) -> None:
        """Ask, write and log."""
        row = self.grid.ask() if update else self.grid.untouched()
        self.runlog.run.probes.append({"update": update, **row})
        if self.runlog.logger is not None:
            self.runlog.logger.log_metrics(row, step=update)
