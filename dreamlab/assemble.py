"""From settings to objects: the one place that reads a config and hands plain values on.

Called by train.py, in the order of the functions below.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader

from dreamlab import callbacks, checkpoints, loggers, precision, snapshots
from dreamlab.adapters import adapt
from dreamlab.checks import Subject
from dreamlab.config import build
from dreamlab.data import ImageSet, TrainingData
from dreamlab.models import Family, load, pick_device
from dreamlab.module import DreamBooth
from dreamlab.prior import class_images, own_images
from dreamlab.resume import Start, settings_that_matter
from dreamlab.runs import RunDirectory, cache_dir, environment, write_json, written_whole
from dreamlab.sample import Sampler, draw
from dreamlab.schema import Train


def record(config: Train, subject: Subject, run: RunDirectory) -> None:
    """Write config.yaml and card.json, before anything else happens."""
    with written_whole(run.config) as temporary:
        OmegaConf.save(OmegaConf.create(asdict(config)), temporary)
    card = {
        "instance_prompt": subject.instance_prompt,
        "class_prompt": subject.class_prompt,
        "photos": [str(photo.resolve()) for photo in subject.photos],
        "photos_digest": subject.digest,
        # The loss is a sum, as in the paper; where a trainer averages both halves, this is the weight to compare
        "prior_share_of_loss": config.prior_weight / (1 + config.prior_weight),
        **environment(),
    }
    write_json(run.card, card)


def base_model(config: Train) -> Family:
    """The untouched, frozen model on the run's device."""
    chosen, device = config.model, pick_device(config.device)
    model = load(chosen.family, chosen.source, chosen.revision, chosen.variant, chosen.vae, chosen.config)
    for part in model.parts().values():
        part.requires_grad_(False).eval().to(device)
    return model


def image_sets(config: Train, subject: Subject, model: Family) -> list[ImageSet]:
    """The instance photos and, unless prior_weight is 0, the class images, with their posterior moments cached."""
    device = pick_device(config.device)
    halves = [(subject.photos, subject.instance_prompt, False)]
    if config.prior_weight > 0:
        halves.append((_class_images(config, subject, model), subject.class_prompt, True))

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), precision.autocast(config.precision, device):
            return model.encode_images(pixels.to(device))

    sets = []
    for paths, prompt, is_prior in halves:
        ids = model.tokenize([prompt])[0]
        images = ImageSet(paths, ids, config.resolution, config.data.crop == "random", config.data.flip, is_prior)
        images.cache(encode)
        sets.append(images)
    if config.data.crop == "center":  # every latent is cached: the VAE's memory is free until the next samples
        model.parts()["vae"].to("cpu")
    return sets


def _class_images(config: Train, subject: Subject, model: Family) -> list[Path]:
    prior, side = config.prior, config.resolution
    sampler = Sampler(prior.sampler, prior.steps, prior.guidance, prior.negative_prompt, side, side)
    own = own_images(Path(config.class_dir).expanduser()) if config.class_dir else []
    return class_images(
        model, subject.class_prompt, config.num_prior_images, sampler, prior.seed,
        cache_dir=cache_dir(config.cache_dir), own=own, device=pick_device(config.device),
        precision=config.precision, batch_size=prior.batch_size,
    )  # fmt: skip


def samples(config: Train, subject: Subject, run: RunDirectory, model: Family) -> callbacks.Samples:
    """The sample prompts and seeds, bound to this model."""
    chosen, side = config.sampling, config.resolution
    sampler = Sampler(chosen.sampler, chosen.steps, chosen.guidance, chosen.negative_prompt, side, side)
    seeds = [chosen.seed + k for k in range(chosen.images_per_prompt)]
    device = pick_device(config.device)

    def draw_samples(prompts: Sequence[str], seeds: Sequence[int], keep: callbacks.OnImage) -> None:
        draw(
            model, prompts, seeds, sampler,
            device=device, precision=config.precision, batch_size=chosen.batch_size, on_image=keep,
        )  # fmt: skip

    return callbacks.Samples(run, subject.sample_prompts, seeds, config.sample_every, draw_samples)


def logger(config: Train, subject: Subject, run: RunDirectory) -> Logger | None:
    """The logger of this run, already told the settings and the prompts."""
    chosen = config.logger
    made = loggers.make_logger(chosen.kind, run.path, run.path.name, chosen.project, chosen.mode)
    if made is not None:
        words = {"instance_prompt": subject.instance_prompt, "class_prompt": subject.class_prompt}
        made.log_hyperparams({**asdict(config), **words})
    return made


def module(config: Train, model: Family) -> DreamBooth:
    """The Lightning module, with the trained parts thawed."""
    trained = adapt(model.parts(), config.adapter.train, config.model.gradient_checkpointing)
    return DreamBooth(
        model, trained, build(config.optimizer), lr=config.lr, text_encoder_lr=config.text_encoder_lr,
        schedule=config.schedule.name, warmup=config.schedule.warmup, steps=config.steps, seed=config.seed,
        prior_weight=config.prior_weight, min_snr_gamma=config.objective.min_snr_gamma,
    )  # fmt: skip


def batches(config: Train, sets: list[ImageSet], start: Start) -> DataLoader[Any]:
    """The endless micro-batches from the update where this run starts."""
    return DataLoader(TrainingData(sets, config.seed, config.batch_size, config.accumulate, start.update), None)


def kept(config: Train, subject: Subject, run: RunDirectory, start: Start) -> list[Callback]:
    """Snapshots, where they are wanted, and resume states: in this order, so that no state outruns its snapshot."""
    every, settings = config.save_every or max(1, config.steps // 4), settings_that_matter(config, subject.digest)
    states = checkpoints.ResumeState(run, every, config.keep_states, settings, start.signature)
    if config.snapshot_every is None:
        return [states]
    about = {"instance_prompt": subject.instance_prompt, "base": snapshots.base_of(config.model)}
    return [checkpoints.Snapshots(run, config.snapshot_every, config.keep_snapshots, about), states]


def trainer(
    config: Train, subject: Subject, run: RunDirectory, start: Start, sampling: Callback, logger: Logger | None
) -> Trainer:
    """Lightning's trainer with our callbacks; it counts updates, not micro-batches, in `max_steps`."""
    device = pick_device(config.device)
    per_update = config.batch_size * config.accumulate * (2 if config.prior_weight > 0 else 1)
    watching: list[Callback] = [
        callbacks.Metrics(run, per_update), callbacks.TrainingProgress(config.steps), sampling,
        *kept(config, subject, run, start), callbacks.StopCleanly(),
    ]  # fmt: skip
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_steps=config.steps, max_epochs=-1,
        accumulate_grad_batches=config.accumulate, gradient_clip_val=config.max_grad_norm,
        plugins=[precision.plugin(config.precision, device), checkpoints.StateFiles()], logger=logger or False,
        callbacks=watching, default_root_dir=run.path, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
