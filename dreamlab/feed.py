"""What training is fed with: from the settings to photos, class images, latents, a teacher's predictions, and batches.

Called by train.py after assemble.py has loaded the model. Everything expensive here is cached under the hash of what
made it, and shared by all runs that would make the same.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import DataLoader

from dreamlab import precision
from dreamlab.data import Crops, ImageSet, Item, TrainingData
from dreamlab.distill import Teacher
from dreamlab.latents import LatentCache
from dreamlab.models import Family, pick_device, vocabulary
from dreamlab.module import DreamBooth
from dreamlab.photos import digest
from dreamlab.prior import class_images, fingerprint
from dreamlab.processes import local_rank
from dreamlab.progress import console
from dreamlab.resume import Start
from dreamlab.runs import cache_dir
from dreamlab.sample import Sampler
from dreamlab.schema import Train
from dreamlab.subject import Photo, Subject, loading_of


def image_sets(config: Train, subject: Subject, model: Family) -> list[ImageSet]:
    """The instance photos and, unless the prior weighs nothing, the class images, with their moments cached."""
    data, device = config.data, pick_device(config.device)
    step = data.bucket_step or config.resolution // 64 * 8 or 8
    loading = loading_of(data)
    crops = Crops(
        config.resolution, data.crop == "random", data.crops, data.flip, step if data.buckets else None,
        data.unmasked_weight, loading,
    )  # fmt: skip

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), precision.autocast(config.precision, device):
            return model.encode_images(pixels.to(device))

    halves = [(_items(model, [photo for c in subject.concepts for photo in c.photos * c.repeats]), False)]
    if config.prior_weight > 0:
        halves.append((_items(model, _class_images(config, subject, model)), True))
    sets = [ImageSet(items, crops, is_prior) for items, is_prior in halves]
    recipe = {"vae": fingerprint(model.encoders()), "precision": config.precision}
    cache = LatentCache(cache_dir(config.cache_dir) / "latents", recipe, loading, encode)
    for images in sets:
        images.cache(cache.moments, config.seed, sets[0].shapes)
    if not crops.is_random or crops.fixed:  # every latent is cached: the VAE's memory is free until the next samples
        for part in (model.parts()["vae"], *model.encoders().values()):
            part.to("cpu")
    return sets


def _items(model: Family, photos: Sequence[Photo]) -> list[Item]:
    """Pictures with their prompts in tokens; a prompt that is cut short is told."""
    ids = {prompt: model.tokenize([prompt])[0] for prompt in {photo.prompt for photo in photos}}
    counts, most = {prompt: vocabulary.count_tokens(model, prompt) for prompt in ids}, vocabulary.max_tokens(model)
    for prompt, count in counts.items():
        if count > most:
            console.print(f"The prompt {prompt!r} has {count} tokens and is cut to {most}.", markup=False)
    return [Item(photo.path, ids[photo.prompt], min(counts[photo.prompt], most), photo.mask) for photo in photos]


def prior_sampler(config: Train) -> Sampler:
    """How class images are drawn."""
    chosen, side = config.prior, config.resolution
    return Sampler(
        chosen.sampler, chosen.steps, chosen.guidance, chosen.negative_prompt, side, side, config.sampling.compile
    )


def _class_images(config: Train, subject: Subject, model: Family) -> list[Photo]:
    """Every subject's class images: the person's own first, then what the model draws."""
    prior, sampler, found = config.prior, prior_sampler(config), []
    for concept in subject.concepts:
        captions = {photo.path: photo.prompt for photo in concept.own}
        paths = class_images(
            model, concept.class_prompt, config.num_prior_images, sampler, prior.seed,
            cache_dir=cache_dir(config.cache_dir), own=list(captions), device=pick_device(config.device),
            precision=config.precision, batch_size=prior.batch_size, jpeg_quality=prior.jpeg_quality,
        )  # fmt: skip
        found += [Photo(path, captions.get(path, concept.class_prompt)) for path in paths]
    return found


def batches(config: Train, sets: list[ImageSet], start: Start, module: DreamBooth) -> DataLoader[Any]:
    """The endless micro-batches of this process from the update where this run starts."""

    def data(accumulate: int, **more: Any) -> TrainingData:
        return TrainingData(
            sets, config.seed, config.batch_size, accumulate, start.update, latent_factor=module.model.latent_factor(),
            trim=config.model.padding == "longest", paired=config.data.pairing == "by_index", **more,
        )  # fmt: skip

    teacher = None
    if config.prior.kind == "distill" and config.prior_weight > 0:
        whole = data(config.accumulate * config.trainer.devices)  # what all processes draw, as one would
        teacher = _teacher(config, sets, module, whole)
        teacher.prepare(start.update, config.steps)
    ours = data(config.accumulate, rank=local_rank(), world_size=config.trainer.devices, teacher=teacher)
    return DataLoader(ours, None)


def _teacher(config: Train, sets: list[ImageSet], module: DreamBooth, whole: TrainingData) -> Teacher:
    """The untouched model's predictions for this run's prior samples, cached under all that decides them."""
    paths = [item.path for item in sets[1].items]
    recipe = {
        "weights": module.model.fingerprint, "options": asdict(module.model.options), "images": digest(paths),
        "prompts": [item.input_ids.tolist() for item in sets[1].items], "crops": asdict(sets[1].crops),
        "shapes": sets[0].shapes, "seed": config.seed, "per_update": whole.per_update, "trim": whole.trim,
        "batch_size": config.batch_size, "paired": whole.paired, "noise_offset": config.objective.noise_offset,
        "timesteps": config.objective.timesteps,
        "precision": config.precision,
    }  # fmt: skip
    return Teacher(
        module, whole, recipe, folder=cache_dir(config.cache_dir) / "teacher", device=pick_device(config.device),
        precision=config.precision,
    )  # fmt: skip
