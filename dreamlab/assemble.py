"""From settings to objects: the one place that reads a config and hands plain values on.

Called by train.py, in the order of the functions below.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from torch import nn

from dreamlab import bookkeeping, callbacks, checkpoints, frozen, learning, loggers, pivotal, precision, processes
from dreamlab.attention import use_attention
from dreamlab.average import Average
from dreamlab.captured import Captured, compile_parts, obstacle
from dreamlab.config import build
from dreamlab.drawn import Drawn
from dreamlab.dropout import Dropout
from dreamlab.fused import can_fuse
from dreamlab.models import Family, Options, load, pick_device
from dreamlab.models.families import FAMILIES
from dreamlab.models.parts import text_encoders
from dreamlab.module import DreamBooth, Objective
from dreamlab.moments import evaluated_updates
from dreamlab.precision_plugins import plugin, shared_out
from dreamlab.prior import fingerprint
from dreamlab.progress import console
from dreamlab.resume import settings_that_matter
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory, environment, write_json, written_whole
from dreamlab.sample import Sampler, draw
from dreamlab.schedules import make_schedule
from dreamlab.schema import Train
from dreamlab.subject import Subject


def record(config: Train, subject: Subject, run: RunDirectory) -> None:
    """Write config.yaml and card.json, before anything else happens."""
    with written_whole(run.config) as temporary:
        OmegaConf.save(OmegaConf.create(asdict(config)), temporary)
    card = {
        "instance_prompt": subject.instance_prompt,
        "class_prompt": subject.class_prompt,
        "photos": [str(photo.resolve()) for photo in subject.photos],
        "photos_digest": subject.digest,
        "concepts": [
            {"token": c.token, "class_word": c.class_word, "photos": len(c.photos), "own_class_images": len(c.own)}
            for c in subject.concepts
        ],
        "captions": {
            str(p.path): p.prompt for c in subject.concepts for p in c.photos if p.prompt != c.instance_prompt
        },
        # The loss is a sum, as in the paper; where a trainer averages both halves, this is the weight to compare
        "prior_share_of_loss": config.prior_weight / (1 + config.prior_weight),
        **environment(),
    }
    write_json(run.card, card)


def base_model(config: Train) -> Family:
    """The untouched, frozen model on the run's device, which knows the hash of its weights."""
    chosen, device = config.model, pick_device(config.device)
    zero_snr, without = config.objective.zero_terminal_snr, tuple(chosen.without)
    options = Options(chosen.clip_skip, zero_snr, chosen.encode_with_own_vae, without)
    model = load(chosen.family, chosen.source, chosen.revision, chosen.variant, chosen.vae, chosen.config, options)
    model.fingerprint = fingerprint(model.parts())
    if pivotal.kind_of_weights(config.adapter) in frozen.BESIDE and config.precision != "fp32":
        networks = [part for name, part in model.parts().items() if name != "vae"]  # it leaves the GPU anyway
        frozen.keep_in(precision.forward_dtype(config.precision), networks)
    waiting = _waiting(config, model)
    for part in (*model.parts().values(), *model.encoders().values()):
        part.requires_grad_(False).eval().to("cpu" if part in waiting else device)
    use_attention(chosen.attention, model.parts().values())
    # Convolutions in half precision are faster with the channels last; bitsandbytes itself would copy such weights
    steps_itself = config.precision == "bf16_pure" or not config.trainer.capture or not can_fuse()
    laid = {"vae"} if "bitsandbytes" in str(config.optimizer.get("_target_")) and steps_itself else {"unet", "vae"}
    for name in laid & model.parts().keys() if device.type == "cuda" else ():
        model.parts()[name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _waiting(config: Train, model: Family) -> list[nn.Module]:
    """Text encoders that stay on the CPU until they read: those of large families, unless text is to learn."""
    text_learns = any(name.startswith("text_encoder") for name in config.adapter.train)
    stay = FAMILIES[model.family].reads_first and not text_learns
    return [*text_encoders(model.parts()).values()] if stay else []


def samples(
    config: Train, subject: Subject, log: RunLog, model: Family, averaged: Average | None, drawn: Drawn
) -> callbacks.Samples:
    """The sample prompts and seeds, bound to this model, or to the average of its weights."""
    chosen = config.sampling
    seeds = [chosen.seed + k for k in range(chosen.images_per_prompt)]
    how = sampler(config)
    draws = drawn.through(how, drawing(config, model, averaged, how, chosen.batch_size))
    return callbacks.Samples(log, subject.sample_prompts, seeds, config.sample_every, draws)


def sampler(config: Train) -> Sampler:
    """How samples are drawn."""
    chosen, side = config.sampling, config.resolution
    return Sampler(chosen.sampler, chosen.steps, chosen.guidance, chosen.negative_prompt, side, side, chosen.compile)


def drawing(
    config: Train, model: Family, averaged: Average | None, sampler: Sampler, batch_size: int
) -> callbacks.Draw:
    """How pictures are drawn from the run's model as it is by then, or from the average of its weights."""

    def draws(prompts: Sequence[str], seeds: Sequence[int], keep: callbacks.OnImage) -> None:
        with averaged.in_use() if averaged else contextlib.nullcontext():
            draw(
                model, prompts, seeds, sampler, device=pick_device(config.device), precision=config.precision,
                batch_size=batch_size, on_image=keep,
            )  # fmt: skip

    return draws


def logger(config: Train, subject: Subject, run: RunDirectory) -> Logger | None:
    """The logger of this run, already told the settings and the prompts."""
    chosen = config.logger
    made = loggers.make_logger(
        chosen.kind, run.path, run.path.name, chosen.project, chosen.mode,
        group=chosen.group, job_type=chosen.job_type, tags=chosen.tags,
    )  # fmt: skip
    if made is not None:
        words = {"instance_prompt": subject.instance_prompt, "class_prompt": subject.class_prompt}
        made.log_hyperparams({**asdict(config), **words})
    return made


def module(config: Train, model: Family) -> DreamBooth:
    """The Lightning module, with the trained parts thawed."""
    trained, chosen = learning.trained_parts(config, model), config.objective
    objective = Objective(
        config.prior_weight, chosen.min_snr_gamma, chosen.noise_offset,
        chosen.huber_delta if chosen.loss == "huber" else None, chosen.timesteps,
    )  # fmt: skip
    return DreamBooth(
        model, trained, build(config.optimizer), partial(make_schedule, chosen=config.schedule, steps=config.steps),
        lr=config.lr, text_encoder_lr=config.text_encoder_lr, text_encoder_stop=config.text_encoder_stop,
        seed=config.seed, objective=objective, inversion=learning.inversion_of(config, trained),
    )  # fmt: skip


def captured(config: Train, module: DreamBooth) -> Captured | None:
    """What replays the module's updates, on a GPU and where nothing is in the way, which is told."""
    compile_parts(dict(module.trained.items()), config.trainer.compile)
    device = pick_device(config.device)
    if device.type == "cpu" or not config.trainer.capture:
        return None
    reason = obstacle(config)
    if reason:
        console.print(f"Updates are not captured as a CUDA graph: {reason}.", markup=False)
        return None
    module.captured = Captured(config.precision, device, config.max_grad_norm, config.seed)
    return module.captured


def gathered(config: Train, run: RunDirectory) -> Family:
    """The model with the weights of the run's last state: where they were shared out, no process has them all."""
    model = base_model(config)
    state = torch.load(run.states()[0], map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    for name, part in model.parts().items():
        prefix = f"trained.{name}."
        own = part.state_dict()
        own.update({key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)})
        part.load_state_dict(own)
    return model


def average(config: Train, module: DreamBooth) -> Average | None:
    """The running average of the trained weights, where one is asked for."""
    return Average(module.trained, config.ema) if config.ema is not None else None


def snapshots(config: Train, subject: Subject, log: RunLog, averaged: Average | None) -> checkpoints.Snapshots | None:
    """Small copies of the weights: at intervals where asked for, else at the moments that a verdict can choose."""
    every, evaluated = config.snapshot_every, evaluated_updates(config.eval, config.steps) - {config.steps}
    if every is None and not evaluated:
        return None

    def is_due(update: int) -> bool:
        return (update % every == 0 or update == config.steps) if every else update in evaluated

    weights = averaged.weights if averaged else checkpoints.learnt
    return checkpoints.Snapshots(log, is_due, config.keep_snapshots, learning.origin(config, subject), weights)


def trainer(
    config: Train, subject: Subject, logs: Sequence[RunLog], beside: Sequence[Callback],
    averaged: Average | None = None, after: Sequence[Callback] = (), captured: Captured | None = None,
) -> Trainer:  # fmt: skip
    """Lightning's trainer with our callbacks; it counts updates, not micro-batches, in `max_steps`.

    `config` is that of the longest of the runs in `logs`. `beside` look on before a resume state is kept, `after`
    when it is.
    """
    device = pick_device(config.device)
    is_shared_out = processes.is_shared_out(config.trainer.devices, config.trainer.strategy)
    chosen = captured or plugin(config.precision, device, config.seed)
    devices, halves = config.trainer.devices, 2 if config.prior_weight > 0 else 1
    per_update = config.batch_size * config.accumulate * devices * halves
    settings = settings_that_matter(config, subject.digest)
    # Clocks of several processes differ
    every = config.save_every or (max(1, config.steps // 4) if devices > 1 else None)
    watching: list[Callback] = [
        *([averaged] if averaged else []),  # first: samples of this update draw with the new average
        *([Dropout(config.seed)] if config.adapter.dropout else []),
        bookkeeping.Metrics(logs, per_update), callbacks.TrainingProgress(config.steps), *beside,
        checkpoints.ResumeState(logs, every, config.keep_states, settings), *after, callbacks.StopCleanly(),
    ]  # fmt: skip
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=devices,
        strategy=processes.strategy(device, devices, config.trainer.strategy, learning.may_skip_weights(config)),
        deterministic=config.trainer.deterministic, max_steps=config.steps, max_epochs=-1,
        accumulate_grad_batches=config.accumulate, gradient_clip_val=config.max_grad_norm,
        plugins=[
            shared_out(config.precision) if is_shared_out else chosen, processes.environment(),
            checkpoints.StateFiles(),
        ],
        logger=False, callbacks=watching, default_root_dir=logs[0].run.path, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
