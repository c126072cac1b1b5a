"""From a batch to its loss: the Lightning module of DreamBooth.

A photo's path: `Batch` -> latents -> noisy latents (diffusion.py) -> the denoiser's prediction -> target
(diffusion.py) -> instance loss + prior_weight * prior loss (loss.py). Only the trained parts are registered here, so
checkpoints hold those and no frozen weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dreamlab.data import Batch
from dreamlab.diffusion import NoiseSchedule, add_noise, min_snr_weights, target
from dreamlab.loss import Losses, dreambooth_loss
from dreamlab.models import Conditioning, Family
from dreamlab.optim import fuse_on_cpu, parameter_groups
from dreamlab.pivotal import Inversion
from dreamlab.randomness import Use, normal, timesteps
from dreamlab.shares import clip, total_norm


@dataclass(frozen=True)
class Objective:
    """What the loss compares and how errors are weighed; the choices are those of conf/train.yaml."""

    prior_weight: float = 1.0
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    huber_delta: float | None = None  # None: squared error
    timesteps: str | None = None  # density that they are drawn with; None: the model's own


class Draws(NamedTuple):
    """What a batch draws by chance: noise `(B, C, h, w)` float32 and timesteps `(B,)` int64."""

    posterior: Tensor
    noise: Tensor
    timesteps: Tensor
    offset: Tensor | None = None  # (B, C, 1, 1)


class Noised(NamedTuple):
    """A batch on its way through the forward process; all but `timesteps` `(B,)` are `(B, C, h, w)`."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy_latents: Tensor


class DreamBooth(LightningModule):
    """Trains `trained`, some parts of `model`, on batches of instance and prior samples."""

    def __init__(
        self, model: Family, trained: nn.ModuleDict, optimizer: Callable[..., Optimizer],
        schedule: Callable[[Optimizer], LRScheduler], *,
        lr: float, seed: int, objective: Objective, text_encoder_lr: float | None = None,
        text_encoder_stop: int | None = None, inversion: Inversion | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trained = trained
        # Held in a tuple, since Lightning would register (and checkpoint) networks found on a plain attribute.
        self._model = (model,)
        self._optimizer, self._schedule = optimizer, schedule
        self.lr, self.text_encoder_lr, self.text_encoder_stop = lr, text_encoder_lr, text_encoder_stop
        self.seed, self.objective, self.inversion = seed, objective, inversion
        self._schedules: dict[torch.device, NoiseSchedule] = {}
        self.captured: Any = None  # captured.Captured, where updates are replayed
        self._texts: dict[tuple[int, ...], Conditioning] = {}  # what frozen text encoders make of each prompt
        # What bookkeeping.Metrics reads after each update, and empties
        self.losses: list[tuple[Tensor, Tensor, Tensor]] = []  # each micro-batch's errors, timesteps and is_prior (B,)
        self.grad_norm = torch.zeros(())  # before clipping
        self.rates: dict[str, float] = {}  # learning rates the update was made with
        self.record: dict[str, float] = {}  # the last update's metrics

    @property
    def model(self) -> Family:
        """The whole model, frozen parts included."""
        return self._model[0]

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder learns."""
        return any(name.startswith("text_encoder") for name in self.trained)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch, a float32 scalar."""
        if self.captured is not None:
            return self.captured.update(self, batch)
        if self.inversion is not None:
            self.inversion.turn(batch.update)
        noised = self.noised(batch)
        losses = self.loss(batch, noised)
        self.losses.append((losses.errors.detach(), noised.timesteps, batch.is_prior))
        return losses.total

    def loss(self, batch: Batch, noised: Noised | None = None, text: Conditioning | None = None) -> Losses:
        """Noise the batch, predict, compare: all random numbers from (seed, update, sample)."""
        goal, noised = self.objective, noised or self.noised(batch)
        text = self.text(batch.input_ids, batch.update) if text is None else text
        pred = self.predict(batch, noised, text)
        schedule = self.schedule(noised.latents.device)
        wanted = target(noised.latents, noised.noise, noised.timesteps, schedule)
        if batch.teacher is not None:
            wanted = wanted.clone()
            wanted[batch.is_prior] = batch.teacher.to(wanted.dtype)
        weights = None
        if goal.min_snr_gamma is not None:
            weights = min_snr_weights(noised.timesteps, schedule, goal.min_snr_gamma)
        return dreambooth_loss(
            pred, wanted, batch.is_prior, goal.prior_weight, weights, mask=batch.mask, huber_delta=goal.huber_delta
        )

    def predict(self, batch: Batch, noised: Noised, text: Conditioning) -> Tensor:
        """The denoiser's output `(B, C, h, w)` for a noised batch, given its text and how its pictures were cut."""
        told = self.schedule(noised.latents.device).told[noised.timesteps]
        sizes = {} if batch.sizes is None else {"sizes": batch.sizes}
        return self.model.predict(noised.noisy_latents, told, {**text, **sizes})

    def noised(self, batch: Batch, draws: Draws | None = None) -> Noised:
        """Latents, noise and timesteps of a batch, and what the forward process makes of them."""
        mean, std = self.moments(batch)
        draws = draws or self.draws(batch, mean)
        latents, noise, schedule = mean + std * draws.posterior, draws.noise, self.schedule(mean.device)
        if draws.offset is not None:  # a shift of whole channels, as noise of a variance of its own
            noise = noise + self.objective.noise_offset * draws.offset
        return Noised(latents, noise, draws.timesteps, add_noise(latents, noise, draws.timesteps, schedule))

    def draws(self, batch: Batch, like: Tensor) -> Draws:
        """All that is random about a batch whose latents have the shape and device of `like`."""
        is_prior = batch.is_prior.tolist()

        def drawn(use: Use, shape: Sequence[int]) -> Tensor:
            return normal(self.seed, use, batch.update, batch.samples, is_prior, shape).to(like.device)

        shape, schedule = like.shape[1:], self.model.schedule
        density = self.objective.timesteps or schedule.density
        steps = timesteps(self.seed, batch.update, batch.samples, is_prior, len(schedule), density).to(like.device)
        offset = drawn(Use.OFFSET, (shape[0], 1, 1)) if self.objective.noise_offset else None
        return Draws(drawn(Use.POSTERIOR, shape), drawn(Use.NOISE, shape), steps, offset)

    def moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's posterior `(B, C, h, w)`, encoded here unless they were cached."""
        if batch.moments is not None:
            return batch.moments
        if batch.pixel_values is None:
            raise ValueError("a batch holds pixel values or moments")
        with torch.no_grad():
            return self.model.encode_images(batch.pixel_values)

    def schedule(self, device: torch.device) -> NoiseSchedule:
        """The noise schedule on `device`, brought there once."""
        if device not in self._schedules:
            self._schedules[device] = self.model.schedule.to(device)
        return self._schedules[device]

    def text(self, input_ids: Tensor, update: int, device: torch.device | None = None) -> Conditioning:
        """The conditioning of token ids `(B, L)`, which a frozen encoder reads once, on `device`, and leaves the GPU.

        Without `device` it is the ids' own; ids on the CPU are known without waiting for a GPU.
        """
        if self.trains_text:
            has_stopped = self.text_encoder_stop is not None and update >= self.text_encoder_stop
            with torch.set_grad_enabled(torch.is_grad_enabled() and not has_stopped):
                # Once for samples with the same prompt. Without gradients, optimizers pass its weights over
                distinct, places = torch.unique(input_ids, dim=0, return_inverse=True)
                return {name: value[places] for name, value in self.model.encode_text(distinct).items()}
        rows = [tuple(row) for row in input_ids.tolist()]
        unread = [row for row in dict.fromkeys(rows) if row not in self._texts]
        if unread:
            with torch.no_grad():
                read = self.model.encode_frozen_text(torch.tensor(unread, device=device or input_ids.device))
            for number, row in enumerate(unread):
                self._texts[row] = {name: value[number : number + 1] for name, value in read.items()}
        return {name: torch.cat([self._texts[row][name] for row in rows]) for name in self._texts[rows[0]]}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Lightning's hook for a batch that is no dictionary."""
        return batch if self.captured is not None else batch.to(device)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trained parts, and its schedule stepped once per update."""
        embedding_lr = self.inversion.lr if self.inversion is not None else None
        groups = parameter_groups(dict(self.trained.items()), self.lr, self.text_encoder_lr, embedding_lr)
        optimizer = self._optimizer(groups, lr=self.lr)
        fuse_on_cpu(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keep the gradient's norm as it was before clipping, and the rates before the schedule moves on."""
        are_shares = isinstance(self.trainer.strategy, FSDPStrategy)
        self.grad_norm = total_norm(_weights(optimizer), are_shares)
        self.keep_rates(optimizer)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: int | float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Lightning's hook, right after the one before: clip by the norm found there, of shares of weights, too."""
        if gradient_clip_val is not None:
            clip(_weights(optimizer), self.grad_norm, gradient_clip_val)

    def keep_rates(self, optimizer: Optimizer) -> None:
        """Note the learning rates of this update."""
        self.rates = {  # Prodigy multiplies its rate by its own estimate d
            f"train/lr_{group['name']}": group["lr"] * group.get("d", 1.0) for group in optimizer.param_groups
        }

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Lightning's hook before a backward pass; the step before has left no gradients."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients as soon as they are used: Lightning would hold them through the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=True)
        if self.inversion is not None:
            self.inversion.settle()


def _weights(optimizer: Optimizer) -> list[Tensor]:
    """All that learns; a walk through the networks would take milliseconds."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
