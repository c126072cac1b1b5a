"""How to train: precisions, 8-bit optimizer, recomputed activations, learning-rate schedules."""

import math

import pytest
import torch
from conftest import Settings, TrainRun

from dreamlab import assemble, feed
from dreamlab.checks import check
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
        assert ("MixedPrecision" in state) == (precision == "fp16"), "the scaler's state goes into checkpoints"


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
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (("schedule=constant",), [1, 1, 1, 1]),
        (("schedule=constant_with_warmup", "schedule.warmup=2"), [0, 1 / 2, 1, 1]),
        (("schedule=linear", "schedule.warmup=1"), [0, 1, 2 / 3, 1 / 3]),
        (("schedule=cosine",), [1, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3))]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_the_schedule_gives_its_closed_form(train_run: TrainRun, schedule: tuple[str, ...], rates: list[float]) -> None:
    run = train_run("steps=4", "lr=1e-4", "text_encoder_lr=1e-5", *schedule)
    assert column(run, "train/lr_unet") == pytest.approx([1e-4 * rate for rate in rates], abs=1e-12)
    assert column(run, "train/lr_text_encoder") == pytest.approx([1e-5 * rate for rate in rates], abs=1e-12)
