"""What holds on pocket holds on the shapes of Stable Diffusion 1 (epsilon) and 2 (v prediction)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_of
from test_update import SGD, fitted, prepared, reference_loss
from tiny_models import save_tiny

from dreamlab import feed, optim
from dreamlab.resume import Start


@pytest.fixture(scope="module", params=[1, 2], ids=["sd1", "sd2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's folder in half precision, as many are published."""
    folder: Path = tmp_path_factory.mktemp("model") / f"sd{request.param}"
    return f"model.source={save_tiny(request.param, folder, torch.float16)}"


def test_loss_and_gradients_are_the_references_and_trainables_are_float32(settings: Settings, source: str) -> None:
    config = settings(source, "data.crop=random", "batch_size=2", "prior_weight=0.7")
    model, sets, module, prompts = prepared(config)
    assert {weight.dtype for weight in module.trained.parameters()} == {torch.float32}
    batch = next(iter(feed.batches(config, sets, Start(""), module)))
    weights = list(module.trained.parameters())
    ours = module.loss(batch).total
    gradients = torch.autograd.grad(ours, weights, materialize_grads=True)
    reference = reference_loss(model, batch, prompts, config.seed, 0.7)
    theirs = torch.autograd.grad(reference, weights, materialize_grads=True)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_two_batches_of_one_are_one_of_two(settings: Settings, source: str) -> None:
    config = replace(settings(source, "steps=2", "lr=0.01"), optimizer=SGD)
    one = fitted(replace(config, name="one", batch_size=2), 2)
    two = fitted(replace(config, name="two", accumulate=2), 2)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [("precision=fp32",), ("precision=fp16", "optimizer=adamw8bit", "accumulate=2")], ids=str
)
def test_going_on_from_a_shorter_run_is_one_long_run(train_run: TrainRun, source: str, how: tuple[str, ...]) -> None:
    how = (*how, "resolution=32")  # half precision is slow on a CPU
    short = train_run(source, *how, "steps=2", "name=short")
    longer = train_run(source, *how, "steps=4", "name=longer", f"resume={short.path}")
    at_once = train_run(source, *how, "steps=4", "name=at_once", "sample_every=1")
    assert are_identical(weights_of(longer), weights_of(at_once))
    losses = [row["train/loss"] for row in at_once.read_metrics()]
    assert losses[2:] == [row["train/loss"] for row in longer.read_metrics()]


def test_how_the_optimizer_groups_weights_changes_nothing(train_run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_run("steps=3", "name=whole")
    monkeypatch.setattr(optim, "MOST_NUMBERS", 200_000)
    parts = train_run("steps=3", "name=parts")
    groups = torch.load(parts.checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert len(groups) > 20 and {group["name"] for group in groups} == {"unet", "text_encoder"}
    assert are_identical(weights_of(whole), weights_of(parts))
    assert whole.read_metrics()[-1]["train/lr_unet"] == parts.read_metrics()[-1]["train/lr_unet"]


def test_a_frozen_text_encoder_is_read_once_per_prompt(settings: Settings, source: str) -> None:
    config = settings(source, "adapter.train=[unet]")
    model, sets, module, _prompts = prepared(config)
    batches = iter(feed.batches(config, sets, Start(""), module))
    first = module.loss(next(batches)).total
    with torch.no_grad():
        for weight in model.parts()["text_encoder"].parameters():
            weight.fill_(float("nan"))  # would be seen if it were read again
    assert torch.isfinite(first) and torch.isfinite(module.loss(next(batches)).total)
