"""Everything that can be wrong with a run is found here, before any weight is loaded.

Each rule is one line of a table; each failure is one sentence with the value, the choices and the remedy.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dreamlab.adapters import KINDS as ADAPTERS
from dreamlab.adapters import check_train
from dreamlab.attention import CHOICES as ATTENTIONS
from dreamlab.attention import check_attention
from dreamlab.errors import UserError, did_you_mean
from dreamlab.low_rank import KINDS as LOW_RANK
from dreamlab.low_rank import check_low_rank
from dreamlab.models import find, is_snapshot, pick_device
from dreamlab.models.families import FAMILIES, check_negative, family_in
from dreamlab.optim import check_optimizer
from dreamlab.pivotal import KINDS as INVERSIONS
from dreamlab.pivotal import check_inversion, check_tokens, kind_of_weights, normal
from dreamlab.places import check_places
from dreamlab.precision import PRECISIONS, check_compile, check_precision
from dreamlab.randomness import DENSITIES
from dreamlab.runs import cache_dir
from dreamlab.sample import FLOW_SAMPLERS, SAMPLERS, check_sampler
from dreamlab.schedules import SCHEDULES, check_schedule
from dreamlab.schema import Train
from dreamlab.secrets import refuse_secrets
from dreamlab.subject import AUTO, Subject, read_subject
from dreamlab.whole import check_writable

Rule = tuple[Callable[[Any], bool], str]  # what is right, and the remedy


def _or_null(rule: Rule) -> Rule:
    return (lambda value: value is None or rule[0](value), f"{rule[1]}, or null")


WHOLE: Rule = (lambda value: value >= 1, "give a whole number, 1 or more")
SOME: Rule = (lambda value: value >= 1, "give a whole number, 1 or more, or prior_weight=0 for no class images at all")
COUNT: Rule = (lambda value: value >= 0, "give 0 or a whole number above")
RATE: Rule = (lambda value: math.isfinite(value) and value > 0, "give a number above 0, such as 1e-6")
WEIGHT: Rule = (lambda value: math.isfinite(value) and value >= 0, "give a number, 0 or more")
SHARE: Rule = (lambda value: 0 <= value <= 1, "give a number from 0 to 1")
PART: Rule = (lambda value: 0 <= value < 1, "give a number from 0 up to, not including, 1")
DECAY: Rule = (lambda value: 0 < value < 1, "give a number between 0 and 1, such as 0.999")
QUALITY: Rule = (lambda value: 1 <= value <= 100, "give a whole number from 1 to 100")
PIXELS: Rule = (lambda value: value >= 8 and value % 8 == 0, "give a multiple of 8 pixels")
OPTIONAL_WHOLE, OPTIONAL_RATE = _or_null(WHOLE), _or_null(RATE)
NUMBERS: dict[str, Rule] = {
    "lr": RATE, "text_encoder_lr": OPTIONAL_RATE, "steps": WHOLE, "batch_size": WHOLE, "accumulate": WHOLE,
    "seed": COUNT, "prior_weight": WEIGHT, "num_prior_images": SOME, "resolution": PIXELS,
    "max_grad_norm": OPTIONAL_RATE,
    "sample_every": OPTIONAL_WHOLE, "save_every": OPTIONAL_WHOLE, "schedule.warmup": COUNT, "prior.steps": WHOLE,
    "prior.guidance": WEIGHT, "prior.batch_size": WHOLE, "prior.seed": COUNT, "sampling.steps": WHOLE,
    "sampling.guidance": WEIGHT, "sampling.seed": COUNT, "sampling.images_per_prompt": WHOLE,
    "sampling.batch_size": WHOLE, "objective.min_snr_gamma": OPTIONAL_RATE, "objective.huber_delta": RATE,
    "objective.noise_offset": WEIGHT, "text_encoder_stop": OPTIONAL_WHOLE, "ema": _or_null(DECAY), "keep_states": WHOLE,
    "snapshot_every": OPTIONAL_WHOLE, "keep_snapshots": OPTIONAL_WHOLE, "model.clip_skip": COUNT, "data.crops": COUNT,
    "data.holdout": _or_null(COUNT),
    "data.bucket_step": _or_null(PIXELS), "data.unmasked_weight": SHARE, "prior.jpeg_quality": _or_null(QUALITY),
    "schedule.cycles": OPTIONAL_RATE, "schedule.power": RATE, "trainer.devices": WHOLE,
    "eval.near": COUNT, "eval.far": _or_null(COUNT), "eval.class_images": COUNT, "eval.unrelated": _or_null(COUNT),
    "eval.images_per_prompt": WHOLE, "eval.moments": COUNT, "eval.steps": WHOLE, "eval.guidance": WEIGHT,
    "eval.seed": COUNT, "eval.batch_size": WHOLE, "eval.probes": COUNT, "adapter.rank": OPTIONAL_WHOLE,
    "adapter.alpha": OPTIONAL_RATE, "adapter.lr": RATE, "adapter.dropout": _or_null(PART),
    "adapter.vectors": OPTIONAL_WHOLE, "adapter.switch_step": OPTIONAL_WHOLE, "adapter.embedding_lr": OPTIONAL_RATE,
}  # fmt: skip
DRAWING = (*SAMPLERS, *FLOW_SAMPLERS)
CHOICES = {
    "model.family": tuple(FAMILIES), "precision": PRECISIONS, "schedule.name": tuple(SCHEDULES),
    "adapter.kind": ADAPTERS, "data.crop": ("center", "random"), "logger.kind": ("wandb", "csv", "tensorboard", "none"),
    "logger.mode": ("auto", "online", "offline"), "prior.sampler": DRAWING, "sampling.sampler": DRAWING,
    "model.padding": ("full", "longest"), "model.attention": ATTENTIONS,
    "data.mask": ("none", "file", "alpha"),
    "data.background": ("white", "black"), "data.resample": ("lanczos", "bilinear"), "objective.loss": ("l2", "huber"),
    "data.pairing": ("independent", "by_index"), "prior.kind": ("images", "distill", "none"),
    "count": ("updates", "micro_batches"), "trainer.strategy": ("ddp", "fsdp"),
    "trainer.compile": ("off", "blocks", "full"),
    "early_stop": ("none", "memorisation", "drift"), "eval.sampler": (None, *DRAWING),
    "objective.timesteps": (None, *DENSITIES),
}  # fmt: skip

CACHED = ("prior", "reference", "latents", "teacher", "tokens")  # folders of a cache that has been used


def _value(config: Train, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check(config: Train) -> tuple[Train, Subject]:
    """The settings with their nulls filled in, and the subject; UserError at the first thing that is wrong."""
    _refuse_added_keys(config)
    refuse_secrets(config)
    check_places(config)
    for key, (is_right, remedy) in NUMBERS.items():
        if not is_right(_value(config, key)):
            raise UserError(f"{key}={_value(config, key)}: {remedy}.")
    for key, choices in CHOICES.items():
        if _value(config, key) not in choices:
            value = str(_value(config, key))
            raise UserError(f"{key}={value}: unknown choice.{did_you_mean(value, [one for one in choices if one])}")
    check_family(config)
    if kind_of_weights(config.adapter) is not None:
        check_train(config.adapter.train, FAMILIES[config.model.family].trainable)
    check_inversion(_normal(config), LOW_RANK)
    check_low_rank(config)
    check_precision(config)
    device = pick_device(config.device)
    check_attention(config.model.attention, device)
    check_compile(config.trainer.compile, config.precision, device)
    find(config.model.source)
    if config.model.vae:
        find(config.model.vae)
    check_schedule(config.schedule, config.steps, config.lr)
    check_optimizer(config)
    _pairs(config)
    config = _normal(config)
    subject = read_subject(config)
    _check_place("out", Path(config.out).expanduser())
    cache = cache_dir(config.cache_dir)
    if not any((cache / kind).is_dir() for kind in CACHED):  # a full cache may be read-only
        _check_place("cache_dir", cache)
    first = subject.concepts[0]
    if config.token == AUTO and not config.concepts:  # last, as it takes the model
        from dreamlab.naming import best_identifier

        config = dataclasses.replace(config, token=best_identifier(config, first.class_word))
        subject = read_subject(config)
        first = subject.concepts[0]
    check_tokens(config, subject)
    if not config.concepts:
        config = dataclasses.replace(
            config, token=first.token, class_word=first.class_word, instance_prompt=first.instance_prompt,
            class_prompt=first.class_prompt,
        )  # fmt: skip
    return config, subject


def check_family(config: Train) -> None:
    """Raise UserError where settings don't go with the model's family, or the model is of another one."""
    name, row, goal = config.model.family, FAMILIES[config.model.family], config.objective
    source = find(config.model.source)
    is_here = Path(source).expanduser().exists() and not is_snapshot(Path(source))
    other = family_in(source, default=name) if is_here else name
    if other != name:
        raise UserError(f"{config.model.source!r} is of family {other}, not {name}. Give model.family={other}.")
    if config.adapter.kind in INVERSIONS and not row.reads_new_words:
        raise UserError(f"adapter={config.adapter.kind}: diffusers' pipelines read no new words with {name}. Use lora.")
    for group in ("prior", "sampling", "eval"):
        sampler = getattr(config, group).sampler
        if sampler:
            check_sampler(f"{group}.sampler", sampler, name)
    for group in ("prior", "sampling"):
        check_negative(f"{group}.negative_prompt", getattr(config, group).negative_prompt, name)
    for part in config.model.without:
        if part not in row.optional:
            raise UserError(f"model.without has {part!r}: {name} needs it. Leave it out of the list.")
    if row.is_flow and goal.min_snr_gamma is not None:
        raise UserError(
            f"objective.min_snr_gamma weighs a diffusion's timesteps, and {name} is a flow. Leave it out, or see"
            " objective.timesteps."
        )
    if row.is_flow and goal.zero_terminal_snr:
        raise UserError(f"objective.zero_terminal_snr: the last step of {name} is noise alone already. Leave it out.")
    if config.resolution % row.side_px:
        raise UserError(f"resolution={config.resolution}: {name} takes multiples of {row.side_px} pixels.")
    if config.data.bucket_step and config.data.bucket_step % row.side_px:
        raise UserError(f"data.bucket_step={config.data.bucket_step}: {name} takes multiples of {row.side_px} pixels.")
    if config.model.padding == "longest" and name != "stable_diffusion":
        raise UserError(f"model.padding=longest is a quirk of one text encoder, and {name} has several. Use full.")


def _normal(config: Train) -> Train:
    """The same settings with what says the same said in one way."""
    if config.prior.kind == "none":
        config = dataclasses.replace(config, prior_weight=0.0)
    if config.count == "micro_batches":  # as the tutorial counts: a step is a micro-batch
        steps = max(1, config.steps // config.accumulate)
        config = dataclasses.replace(config, steps=steps, count="updates")
    return normal(config)


def _pairs(config: Train) -> None:
    """Settings that don't go together."""
    data, goal, several = config.data, config.objective, config.trainer.devices > 1
    if data.crops and data.crop != "random":
        raise UserError(f"data.crops={data.crops} is of random crops. Use data.crop=random, or data.crops=0.")
    if goal.zero_terminal_snr and goal.noise_offset:
        raise UserError(
            "objective.zero_terminal_snr does what objective.noise_offset approximates. Leave one of them out."
        )
    for key in ("prior", "sampling"):
        if goal.zero_terminal_snr and _value(config, f"{key}.sampler") in ("pndm", "lms"):
            raise UserError(
                f"{key}.sampler can't start from noise alone, as objective.zero_terminal_snr does. Use ddim."
            )
    if config.text_encoder_stop is not None and not any(p.startswith("text_encoder") for p in config.adapter.train):
        raise UserError("text_encoder_stop: the text encoder doesn't learn at all. Leave it out, or see adapter.train.")
    measured = config.eval.moments or config.eval.at or config.eval.probes
    on_the_way = config.sample_every or config.snapshot_every or config.ema is not None or measured
    if config.trainer.strategy == "fsdp" and several and on_the_way:
        raise UserError(
            "trainer.strategy=fsdp can't sample, measure or average on the way. Use eval=none without sample_every,"
            " snapshot_every and ema; or use ddp."
        )
    if (
        several
        and config.device != "cpu"
        and torch.cuda.is_available()
        and config.trainer.devices > torch.cuda.device_count()
    ):
        raise UserError(
            f"trainer.devices={config.trainer.devices}: PyTorch sees {torch.cuda.device_count()} GPUs here."
        )
    if config.trainer.strategy == "fsdp" and several and pick_device(config.device).type == "cpu":
        raise UserError("trainer.strategy=fsdp needs GPUs. Use trainer.strategy=ddp.")


def _refuse_added_keys(node: Any, prefix: str = "") -> None:
    """Hydra lets +key=value add anything to any group; nobody would read it."""
    known = {item.name for item in dataclasses.fields(node)}
    for key, value in vars(node).items():
        if key not in known:
            raise UserError(f"There is no setting called {prefix + key!r}.{did_you_mean(key, known)}")
        if dataclasses.is_dataclass(value):
            _refuse_added_keys(value, f"{prefix}{key}.")


def _check_place(key: str, folder: Path) -> None:
    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written ({error.strerror}). Choose another place: {key}=..."
        ) from None
