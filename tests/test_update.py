"""Whole updates of the miniature model against a plain reference, and what may not change them."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of
from diffusers import DDPMScheduler
from pytorch_lightning import Callback
from torch import Tensor
from torch.nn.functional import mse_loss

from dreamlab import assemble, feed
from dreamlab.checks import check
from dreamlab.data import Batch, ImageSet
from dreamlab.models import Family
from dreamlab.module import DreamBooth
from dreamlab.randomness import Use, normal, timesteps
from dreamlab.resume import Start, open_run
from dreamlab.runlog import RunLog
from dreamlab.schema import Train

SGD = {"_target_": "torch.optim.SGD"}  # moves in proportion to the gradient; Adam would hide a wrong scale


def reference_loss(model: Any, batch: Batch, prompts: tuple[str, str], seed: int, prior_weight: float) -> Tensor:
    """The DreamBooth loss of a batch of pixels, written down plainly with diffusers' own parts."""
    scheduler = DDPMScheduler.from_config(model.scheduler.config, prediction_type=model.schedule.prediction_type)
    drawn = (seed, batch.update, batch.samples, batch.is_prior.tolist())
    posterior = model.vae.encode(batch.pixel_values).latent_dist
    shape = posterior.mean.shape[1:]
    latents = posterior.mean + posterior.std * normal(drawn[0], Use.POSTERIOR, *drawn[1:], shape)
    latents = (latents * model.vae.config.scaling_factor).detach()
    noise = normal(drawn[0], Use.NOISE, *drawn[1:], shape)
    steps = timesteps(*drawn, scheduler.config.num_train_timesteps)
    noisy = scheduler.add_noise(latents, noise, steps)
    captions = [prompts[is_prior] for is_prior in batch.is_prior.tolist()]
    ids = model.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    pred = model.unet(noisy, steps, model.text_encoder(ids)[0]).sample
    wanted = noise if model.schedule.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, steps)
    size = len(batch.samples) // 2  # the instance samples stand first
    return mse_loss(pred[:size], wanted[:size]) + prior_weight * mse_loss(pred[size:], wanted[size:])


def prepared(config: Train) -> tuple[Family, list[ImageSet], DreamBooth, tuple[str, str]]:
    """Model, images, module and both prompts of a run on the CPU."""
    config, subject = check(config)
    model = assemble.base_model(config)
    sets = feed.image_sets(config, subject, model)
    return model, sets, assemble.module(config, model), (subject.instance_prompt, subject.class_prompt)


class Keep(Callback):
    """Copies the trained weights when `update` is done."""

    def __init__(self, update: int) -> None:
        self.update, self.weights = update, dict[str, Tensor]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.update:
            self.weights = {name: weight.clone() for name, weight in pl_module.trained.state_dict().items()}


def fitted(config: Train, update: int, prior_in_batch: bool | None = None) -> dict[str, Tensor]:
    """The trained weights after `update` updates; `prior_in_batch` puts class images there whatever they weigh."""
    config, subject = check(config)
    _, _, run, start = open_run(config, subject)
    model, keep = assemble.base_model(config), Keep(update)
    run.path.mkdir(parents=True)
    shown = replace(config, prior_weight=1.0) if prior_in_batch else config
    sets = feed.image_sets(shown, subject, model)
    trainer = assemble.trainer(config, subject, [RunLog(run, config.steps)], [keep])
    module = assemble.module(config, model)
    trainer.fit(module, feed.batches(config, sets, start, module))
    return keep.weights


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("batch_size", "prior_weight"), [(1, 1.0), (2, 0.3)])
def test_loss_and_every_gradient_are_the_references(
    settings: Settings, prediction_type: str, batch_size: int, prior_weight: float
) -> None:
    config = settings("data.crop=random", f"batch_size={batch_size}", f"prior_weight={prior_weight}")
    model, sets, module, prompts = prepared(config)
    model.schedule = replace(model.schedule, prediction_type=prediction_type)
    batch = next(iter(feed.batches(config, sets, Start(""), module)))
    ours = module.loss(batch).total
    gradients = torch.autograd.grad(ours, list(module.trained.parameters()), materialize_grads=True)
    reference = reference_loss(model, batch, prompts, config.seed, prior_weight)
    theirs = torch.autograd.grad(reference, list(module.trained.parameters()), materialize_grads=True)

    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def test_a_run_is_the_plain_training_loop(settings: Settings, train_run: TrainRun) -> None:
    overrides = ("data.crop=random", "steps=3", "accumulate=2", "max_grad_norm=0.5")
    run = train_run(*overrides)
    config = settings(*overrides)
    model, sets, module, prompts = prepared(config)
    weights = [*model.parts()["unet"].parameters(), *model.parts()["text_encoder"].parameters()]
    optimizer = torch.optim.AdamW(weights, lr=5e-5, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    batches = iter(feed.batches(config, sets, Start(""), module))
    for _ in range(3):
        for batch in islice(batches, 2):
            (reference_loss(model, batch, prompts, config.seed, 1.0) / 2).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        optimizer.zero_grad()

    expected, saved = weights_in(model), weights_of(run)
    for name, weight in saved.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_a_short_run_is_the_beginning_of_a_long_one(settings: Settings, train_run: TrainRun) -> None:
    short = weights_of(train_run("steps=3"))
    long = fitted(settings("steps=6", "name=long"), update=3)
    assert long and all(torch.equal(short[name], weight) for name, weight in long.items())


def test_the_same_run_twice_is_the_same_bit_for_bit(train_run: TrainRun) -> None:
    first, second = train_run("name=first"), train_run("name=second")
    assert are_identical(weights_of(first), weights_of(second))
    assert not are_identical(weights_of(first), weights_of(train_run("seed=7")))


def test_accumulating_two_batches_of_one_is_one_batch_of_two(settings: Settings) -> None:
    config = replace(settings("steps=3", "lr=0.01"), optimizer=SGD)
    before = prepared(config)[2].trained.state_dict()
    one, two = (replace(config, batch_size=2), replace(config, accumulate=2))
    one, two = fitted(replace(one, name="one"), 3), fitted(replace(two, name="two"), 3)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-6)
    assert max((one[name] - before[name]).abs().max() for name in one) > 1e-4


def test_class_images_of_no_weight_are_as_good_as_none(settings: Settings) -> None:
    config = replace(settings("steps=3", "prior_weight=0", "lr=0.01"), optimizer=SGD)
    without = fitted(replace(config, name="without"), 3)
    weightless = fitted(replace(config, name="weightless"), 3, prior_in_batch=True)
    weighed = fitted(replace(config, name="weighed", prior_weight=1.0), 3)
    for name, weight in without.items():
        torch.testing.assert_close(weightless[name], weight, rtol=0, atol=1e-6)
    assert max((weighed[name] - without[name]).abs().max() for name in without) > 1e-4


@pytest.mark.parametrize(("part", "frozen"), [("unet", "text_encoder"), ("text_encoder", "unet")])
def test_only_the_named_part_learns(train_run: TrainRun, model: Family, part: str, frozen: str) -> None:
    after = weights_of(train_run(f"adapter.train=[{part}]"))
    before = weights_in(model)
    moved = {name.split(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {part} and any(name.startswith(frozen) for name in after)
