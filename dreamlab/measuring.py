"""From settings to what is measured: the judge, the moments and the probes of a run.

Called by train.py beside assemble.py and feed.py; nothing here changes what is trained.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from dreamlab import assemble, encoders, precision
from dreamlab.average import Average
from dreamlab.callbacks import Draw, Samples
from dreamlab.drawn import Drawn
from dreamlab.encoders import Encoder
from dreamlab.errors import UserError
from dreamlab.evaluation import Judge
from dreamlab.feed import prior_sampler
from dreamlab.models import Family, pick_device
from dreamlab.models.families import sampler_of
from dreamlab.module import DreamBooth
from dreamlab.moments import Moments, evaluated_updates, make_judge, plan, spaced
from dreamlab.photos import Region, crop, read_photo
from dreamlab.prior import class_images, reference_images
from dreamlab.probes import Grid, Probe, Probes
from dreamlab.prompt_sets import find_set
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory, cache_dir
from dreamlab.sample import Sampler
from dreamlab.schema import Train
from dreamlab.subject import Subject, loading_of

PICTURES = 2  # of each kind in the grid of probes


def judge(
    config: Train, subject: Subject, run: RunDirectory, load: Callable[[str], Encoder] = encoders.load
) -> Judge | None:
    """Encoders and photos; None where nothing is evaluated. UserError where an encoder is not to be had."""
    if not config.eval.moments and not config.eval.at:
        return None
    loading = loading_of(config.data)
    try:
        return make_judge(config.eval, subject.concepts, config.resolution, loading, run, load)
    except UserError as error:
        raise UserError(
            f"{error} Name other encoders by eval.dino= and eval.clip=, or measure nothing: eval=none."
        ) from None


def moments(
    config: Train, subject: Subject, log: RunLog, model: Family, judge: Judge, averaged: Average | None, drawn: Drawn
) -> Moments:
    """The evaluation's shots, bound to this model, which must be untouched now, or later to its average."""
    chosen, shots = config.eval, plan(config.eval, subject.concepts)
    paths = reference_images(
        model, shots.prompts, shots.seeds, _eval_sampler(config), cache_dir=cache_dir(config.cache_dir),
        device=pick_device(config.device), precision=config.precision, batch_size=chosen.batch_size,
    )  # fmt: skip
    base = [Image.open(path).convert("RGB") for path in paths]
    updates = evaluated_updates(chosen, config.steps)
    draws = drawn.through(_eval_sampler(config), drawing(config, model, averaged))
    return Moments(log, shots, judge, draws, base, updates, config.early_stop)


def untouched(config: Train, samples: Samples, model: Family) -> list[Image.Image]:
    """The samples of update 0; `model` must be untouched. All runs that would draw the same share them."""
    pairs = samples.pairs()
    paths = reference_images(
        model, [prompt for prompt, _ in pairs], [seed for _, seed in pairs], assemble.sampler(config),
        cache_dir=cache_dir(config.cache_dir), device=pick_device(config.device), precision=config.precision,
        batch_size=config.sampling.batch_size,
    )  # fmt: skip
    return [Image.open(path).convert("RGB") for path in paths]


def _eval_sampler(config: Train) -> Sampler:
    chosen, side = config.eval, config.resolution
    name = chosen.sampler or sampler_of(config.model.family, is_quick=True)
    return Sampler(name, chosen.steps, chosen.guidance, "", side, side, config.sampling.compile)


def drawing(config: Train, model: Family, averaged: Average | None) -> Draw:
    """How a moment's shots are drawn."""
    return assemble.drawing(config, model, averaged, _eval_sampler(config), config.eval.batch_size)


def probes(config: Train, subject: Subject, log: RunLog, module: DreamBooth) -> Probes | None:
    """The grid of probes with what the untouched model says; None where none are asked for."""
    if not config.eval.probes:
        return None
    model, device, concept = module.model, pick_device(config.device), subject.concepts[0]
    loading = loading_of(config.data)
    unrelated = find_set(config.eval.prompts, concept.class_word).unrelated[:PICTURES]
    of_class = _outside_the_prior(config, subject, model)
    asked = [
        ("train", [(photo.path, photo.prompt) for photo in concept.photos[:PICTURES]], True),
        ("held_out", [(photo.path, photo.prompt) for photo in concept.held_out[:PICTURES]], True),
        ("class", [(path, concept.class_prompt) for path in of_class], True),
        ("unrelated", list(zip(_unrelated(config, model, unrelated), unrelated, strict=True)), False),
        ("empty", [(path, "") for path in of_class[:1]], False),
    ]
    home = next(model.parts()["vae"].parameters()).device
    for encoder in model.encoders().values():
        encoder.to(device)
    made = []
    for name, pictures, asks_loss in asked:
        if pictures:
            region = Region(config.resolution, config.resolution)
            pixels = [crop(read_photo(path, loading), region, loading.resample) * 2 - 1 for path, _ in pictures]
            with torch.no_grad(), precision.autocast(config.precision, device):
                latents = model.encode_images(torch.stack(pixels).to(device))[0].cpu()
            made.append(Probe(name, latents, model.tokenize([prompt for _, prompt in pictures]), asks_loss))
    for encoder in model.encoders().values():
        encoder.to(home)
    grid = Grid(
        model, made, lambda ids: module.text(ids, 0), device, lambda: precision.autocast(config.precision, device)
    )
    grid.remember()
    return Probes(log, grid, spaced(config.steps, config.eval.probes))


def _outside_the_prior(config: Train, subject: Subject, model: Family) -> list[Path]:
    """Class images that are not trained on: the next numbers after the prior set's."""
    concept, count = subject.concepts[0], config.num_prior_images if config.prior_weight > 0 else 0
    return class_images(
        model, concept.class_prompt, count + PICTURES, prior_sampler(config), config.prior.seed,
        cache_dir=cache_dir(config.cache_dir), own=[photo.path for photo in concept.own],
        device=pick_device(config.device), precision=config.precision, batch_size=config.prior.batch_size,
        jpeg_quality=config.prior.jpeg_quality,
    )[-PICTURES:]  # fmt: skip


def _unrelated(config: Train, model: Family, prompts: Sequence[str]) -> list[Path]:
    """What the untouched model draws for prompts of other things."""
    return reference_images(
        model, prompts, [config.prior.seed] * len(prompts), prior_sampler(config),
        cache_dir=cache_dir(config.cache_dir), device=pick_device(config.device), precision=config.precision,
        batch_size=config.prior.batch_size,
    )  # fmt: skip
