"""How to train: precisions, fp16's scaler, 8-bit optimizer, recomputed activations."""

import math

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in, weights_of

from dreamlab import assemble, feed
from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.runs import RunDirectory


def column(run: RunDirectory, name: str) -> list[float]:
    return [row[name] for row in run.read_metrics()]


@pytest.mark.slow
def test_half_precisions_compute_the_losses_of_full_precision_and_keep_masters(train_run: TrainRun) -> None:
    full = column(train_run("steps=3", "precision=fp32", "name=fp32", "prior_weight=0"), "train/loss")
    # bf16 has 8 bits of mantissa, fp16 has 11; the class images would differ too, so there are none
    for precision, tolerance in (("bf16", 2e-2), ("fp16", 4e-3)):
        run = train_run("steps=3", f"precision={precision}", f"name={precision}", "prior_weight=0")
        assert column(run, "train/loss") == pytest.approx(full, rel=tolerance)
        assert column(run, "train/loss") != full
        state = torch.load(run.checkpoint, weights_only=True)
        assert {weight.dtype for weight in state["state_dict"].values() if weight.is_floating_point()} == {
            torch.float32
        }
        assert ("Scaled" in state) == (precision == "fp16"), "the scaler's state goes into checkpoints"


def test_compiling_whole_networks_in_half_precision_is_refused_on_a_cpu(settings: Settings) -> None:
    """PyTorch 2.13 loses most of a U-Net's gradients there."""
    for words in (("trainer.compile=full", "precision=bf16"), ("trainer.compile=full", "precision=fp16")):
        with pytest.raises(UserError, match=r"gets gradients wrong.*trainer\.compile=blocks, or precision=fp32"):
            check(settings(*words))
    for words in (("trainer.compile=blocks", "precision=bf16"), ("trainer.compile=full", "precision=fp32")):
        check(settings(*words))


def test_adamw8bit_keeps_its_moments_in_bytes(train_run: TrainRun) -> None:
    run = train_run("optimizer=adamw8bit", "steps=3", "lr=1e-4")
    state = torch.load(run.checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    moments = [entry["__bnb_optimizer_quant_state__"] for entry in state.values()]
    kept = [tensor for entry in moments for key, tensor in entry.items() if key.startswith("state")]
    assert sum(tensor.dtype == torch.uint8 for tensor in kept) > 50
    in_bytes = sum(tensor.numel() for tensor in kept if tensor.dtype == torch.uint8)
    assert in_bytes > 0.95 * sum(tensor.numel() for tensor in kept)  # small tensors stay float32
    losses = column(run, "train/loss")
    assert all(math.isfinite(loss) for loss in losses)


def test_the_8_bit_optimizer_moves_where_the_32_bit_one_does(train_run: TrainRun) -> None:
    plain = column(train_run("steps=4", "lr=1e-4", "name=plain"), "train/loss")
    eight = column(train_run("steps=4", "lr=1e-4", "name=eight", "optimizer=adamw8bit"), "train/loss")
    assert eight == pytest.approx(plain, rel=0.05) and eight != plain


def test_recomputed_activations_give_the_same_gradients(settings: Settings) -> None:
    gradients = []
    for recompute in ("false", "true"):
        config, subject = check(settings(f"model.gradient_checkpointing={recompute}"))
        model = assemble.base_model(config)
        sets = feed.image_sets(config, subject, model)
        module = assemble.module(config, model)
        assert model.parts()["unet"].is_gradient_checkpointing is (recompute == "true")
        from dreamlab.data import TrainingData

        module.loss(TrainingData(sets, 1, 1, 1).batch(0, 0)).total.backward()
        gradients.append({name: weight.grad for name, weight in module.trained.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_an_overflow_skips_its_update_halves_the_scale_and_is_counted(train_run: TrainRun, model: Family) -> None:
    """A loss of 1e5 times its size has gradients beyond fp16's 65504 once scaled by 65536, and by half, and by half."""
    words = ("precision=fp16", "prior_weight=1e5", "prompts=[]")
    run = train_run(*words, "steps=3", "name=long")
    assert column(run, "train/skipped_updates") == [1, 2, 3]
    assert column(run, "train/loss_scale") == [32768, 16384, 8192]
    assert are_identical(weights_of(run), weights_in(model)), "a skipped update moves nothing"
    short = train_run(*words, "steps=2", "name=short")
    longer = train_run(*words, "steps=3", "name=longer", f"resume={short.path}")
    assert column(longer, "train/skipped_updates") == [3] and column(longer, "train/loss_scale") == [8192]


def test_without_an_overflow_nothing_is_skipped_and_other_precisions_have_no_scale(train_run: TrainRun) -> None:
    half = train_run("precision=fp16", "steps=1", "prior_weight=0", "prompts=[]", "name=fp16")
    assert column(half, "train/skipped_updates") == [0] and column(half, "train/loss_scale") == [65536]
    full = train_run("precision=bf16", "steps=1", "prior_weight=0", "prompts=[]", "name=bf16")
    assert not {"train/skipped_updates", "train/loss_scale"} & set(full.read_metrics()[0])
