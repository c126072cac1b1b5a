"""Cheap probes of a run: no sampling, only denoising on a fixed grid, always beside the untouched model.

Two questions, each asked of the same pictures, timesteps and noise at every moment of every run:

    loss(set) / loss_0(set)             how well are these pictures denoised, against the untouched model (index 0)?
    |pred - pred_0|^2 / |pred_0|^2      how far has the prediction moved, whatever the truth is? (functional drift)

The first of training photos falls as they are learnt; of held-out photos of the subject it falls as the subject is
learnt, and rises again where the photos are memorised; of class images outside the prior set it tells class drift. The
second is asked with the class prompt, unrelated prompts and no prompt. No random state is touched, so training is the
same bit for bit with and without. Called by train.py; the grid is built by feed.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger
from torch import Tensor

from dreamlab.callbacks import Updates
from dreamlab.diffusion import add_noise, target
from dreamlab.loss import per_sample_error
from dreamlab.models import Family, evaluating
from dreamlab.randomness import Use, generator
from dreamlab.runs import RunDirectory

QUARTERS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # of the noise schedule: the middle of each
SEED = 0  # not the run's: probes are comparable between runs


@dataclass(frozen=True)
class Probe:
    """Pictures under a prompt each: `latents` `(N, C, h, w)`, the posterior's means, and `input_ids` `(N, L)`."""

    name: str
    latents: Tensor
    input_ids: Tensor
    asks_loss: bool  # or only how far the prediction has moved


def fixed_noise(latents: Tensor, place: int) -> Tensor:
    """Noise of the shape of `latents` for one place of the grid, a function of picture and place alone."""
    rows = [
        torch.from_numpy(generator(SEED, Use.PROBE, place, number).standard_normal(latents.shape[1:], dtype="float32"))
        for number in range(len(latents))
    ]
    return torch.stack(rows)


class Grid:
    """All probes of a run over its model, with what the untouched model says once `remember()` has been called."""

    def __init__(
        self, model: Family, probes: Sequence[Probe], text: Callable[[Tensor], Any], device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:  # fmt: skip
        self.model, self.probes, self.text, self.device, self.autocast = model, probes, text, device, autocast
        self._before: dict[tuple[str, int], Tensor] = {}

    def remember(self) -> None:
        """Keep the untouched model's predictions."""
        self._before = {
            (probe.name, place): self._predict(probe, place) for probe in self.probes for place in range(len(QUARTERS))
        }

    def ask(self) -> dict[str, float]:
        """`probe/<name>_drift` of every probe and `probe/<name>_loss` of some: 0 and 1 where nothing has changed."""
        found = {}
        for probe in self.probes:
            pairs = [
                (self._predict(probe, place), self._before[probe.name, place], self._target(probe, place))
                for place in range(len(QUARTERS))
            ]
            moved = [((now - before).square().mean() / before.square().mean()).item() for now, before, _ in pairs]
            found[f"probe/{probe.name}_drift"] = sum(moved) / len(moved)
            if probe.asks_loss:
                ratios = [
                    (per_sample_error(now, wanted).mean() / per_sample_error(before, wanted).mean()).item()
                    for now, before, wanted in pairs
                ]
                found[f"probe/{probe.name}_loss"] = sum(ratios) / len(ratios)
        return found

    def _target(self, probe: Probe, place: int) -> Tensor:
        return target(
            self.model.prediction_type, probe.latents, fixed_noise(probe.latents, place), self._timesteps(probe, place),
            self.model.alphas_cumprod,
        )  # fmt: skip

    def _timesteps(self, probe: Probe, place: int) -> Tensor:
        return torch.full((len(probe.latents),), int(QUARTERS[place] * len(self.model.alphas_cumprod)))

    def _predict(self, probe: Probe, place: int) -> Tensor:
        """The model's prediction `(N, C, h, w)`, float32 on the CPU."""
        timesteps = self._timesteps(probe, place)
        noisy = add_noise(probe.latents, fixed_noise(probe.latents, place), timesteps, self.model.alphas_cumprod)
        with evaluating(self.model.parts().values()), self.autocast():
            text = self.text(probe.input_ids.to(self.device))
            pred = self.model.predict(noisy.to(self.device), timesteps.to(self.device), text)
        return pred.float().cpu()


class Probes(Updates):
    """Asks the grid at given updates; one line of probes.jsonl each."""

    def __init__(self, run: RunDirectory, grid: Grid, updates: set[int]) -> None:
        self.run, self.grid, self.updates = run, grid, updates

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        if trainer.is_global_zero and update in self.updates:
            self.take(trainer.logger, update)

    def take(self, logger: Logger | None, update: int) -> None:
        """Ask, write and log."""
        row = self.grid.ask()
        self.run.probes.append({"update": update, **row})
        if logger is not None:
            logger.log_metrics(row, step=update)
