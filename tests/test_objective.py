"""What is learnt from: the teacher's predictions, other losses and noise, averages, an encoder that stops learning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_of
from diffusers import DDPMScheduler
from tiny_models import save_tiny
from torch.nn.functional import huber_loss, mse_loss

from dreamlab import assemble, feed
from dreamlab.bookkeeping import mean_losses
from dreamlab.checks import check
from dreamlab.diffusion import min_snr_weights
from dreamlab.distill import prior_half
from dreamlab.errors import UserError
from dreamlab.loss import per_sample_error
from dreamlab.models import Options, load
from dreamlab.randomness import Use, normal
from dreamlab.resume import Start
from dreamlab.schema import Train


def prepared(config: Train, update: int = 0) -> tuple[Any, Any]:
    """The module of a run and its batches from `update` on."""
    config, subject = check(config)
    model = assemble.base_model(config)
    sets = feed.image_sets(config, subject, model)
    module = assemble.module(config, model)
    return module, iter(feed.batches(config, sets, Start("", update=update), module))


@pytest.fixture(scope="module", params=[1, 2], ids=["sd1", "sd2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("model") / f"sd{request.param}"
    return f"model.source={save_tiny(request.param, folder)}"


def test_hubers_loss_is_torchs_twice_and_meets_the_square() -> None:
    pred, wanted = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = 2 * huber_loss(pred, wanted, reduction="none", delta=0.3).flatten(1).mean(1)
    torch.testing.assert_close(per_sample_error(pred, wanted, huber_delta=0.3), expected)
    torch.testing.assert_close(per_sample_error(pred, wanted, huber_delta=100.0), per_sample_error(pred, wanted))


def test_offset_noise_shifts_whole_channels(settings: Settings) -> None:
    module, batches = prepared(settings("objective.noise_offset=0.1"))
    plain, _ = prepared(settings())
    batch = next(batches)
    shifted, noise = module.noised(batch), plain.noised(batch)
    drawn = normal(module.seed, Use.OFFSET, 0, batch.samples, batch.is_prior.tolist(), (8, 1, 1))
    torch.testing.assert_close(shifted.noise, noise.noise + 0.1 * drawn)
    assert torch.equal(shifted.timesteps, noise.timesteps) and torch.equal(shifted.latents, noise.latents)


def test_zero_terminal_snr_is_diffusers_own_schedule_and_the_tuned_model_keeps_it(
    settings: Settings, train_run: TrainRun, tmp_path: Path
) -> None:
    source = f"model.source={save_tiny(2, tmp_path / 'sd2')}"
    module, batches = prepared(settings(source, "objective.zero_terminal_snr=true"))
    model = module.model
    expected = DDPMScheduler.from_config(model.scheduler.config).alphas_cumprod
    assert torch.equal(model.schedule.signal, expected.sqrt()) and model.schedule.signal[-1] == 0
    assert torch.isfinite(module.loss(next(batches)).total)
    assert torch.isfinite(min_snr_weights(torch.tensor([999, 0]), model.schedule, 5.0)).all()
    saved = load("stable_diffusion", str(train_run(source, "objective.zero_terminal_snr=true").model))
    config = saved.pipeline().scheduler.config
    assert config.rescale_betas_zero_snr and config.timestep_spacing == "trailing"


def test_zero_terminal_snr_is_refused_where_it_means_nothing(settings: Settings, tmp_path: Path) -> None:
    config = settings(f"model.source={save_tiny(1, tmp_path / 'sd1')}", "objective.zero_terminal_snr=true")
    with pytest.raises(UserError, match="predicts v"):
        assemble.base_model(config)
    with pytest.raises(UserError, match=r"objective\.noise_offset"):
        check(settings("objective.zero_terminal_snr=true", "objective.noise_offset=0.1"))
    with pytest.raises(UserError, match=r"sampling\.sampler"):
        check(settings("objective.zero_terminal_snr=true", "sampling.sampler=pndm"))


def test_min_snr_weighs_each_half_with_its_own_timesteps(settings: Settings, source: str) -> None:
    module, batches = prepared(settings(source, "batch_size=3", "objective.min_snr_gamma=5", "prior_weight=0.5"))
    batch = next(batches)
    noised = module.noised(batch)
    model = module.model
    pred = model.predict(noised.noisy_latents, noised.timesteps, module.text(batch.input_ids, 0))
    scheduler = DDPMScheduler.from_config(model.scheduler.config)
    is_v = model.schedule.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(noised.latents, noised.noise, noised.timesteps) if is_v else noised.noise
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    each = torch.stack([mse_loss(pred[k], wanted[k]) for k in range(6)])
    ratio = snr[noised.timesteps]
    each = each * ratio.clamp(max=5) / (ratio + 1 if is_v else ratio)
    torch.testing.assert_close(module.loss(batch).total, each[:3].mean() + 0.5 * each[3:].mean())


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_is_the_layer_before_after_the_final_norm(tmp_path: Path, skip: int) -> None:
    folder = str(save_tiny(1, tmp_path / "sd1"))
    whole: Any = load("stable_diffusion", folder)
    skipping = load("stable_diffusion", folder, options=Options(clip_skip=skip))
    ids = whole.tokenize(["a photo of a dog"])
    encoder = whole.text_encoder
    states = encoder(ids, output_hidden_states=True).hidden_states
    assert len(states) == 4
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    assert torch.equal(skipping.encode_text(ids)["hidden"], norm(states[-1 - skip]))
    assert not torch.equal(skipping.encode_text(ids)["hidden"], whole.encode_text(ids)["hidden"])


def test_clip_skip_is_trained_and_sampled_with(train_run: TrainRun) -> None:
    plain, skipping = train_run("name=plain"), train_run("model.clip_skip=1", "name=skipping")
    assert plain.read_metrics()[0]["train/loss"] != skipping.read_metrics()[0]["train/loss"]
    first = [(run.samples / "update-000000" / "0000.png").read_bytes() for run in (plain, skipping)]
    assert first[0] != first[1]
    with pytest.raises(UserError, match="only 4 layers"):
        train_run("model.clip_skip=4", "name=none")


def test_losses_are_told_by_half_and_quarter() -> None:
    row = mean_losses([1.0, 2.0, 3.0, 5.0, 8.0], [0, 249, 250, 999, 500], [False, False, True, True, True], 0.5, 1000)
    assert row == {
        "train/loss": 1.5 + 0.5 * 16 / 3, "train/loss_instance": 1.5, "train/loss_prior": 16 / 3,
        "train/loss_instance_q1": 1.5, "train/loss_prior_q2": 3.0, "train/loss_prior_q3": 8.0,
        "train/loss_prior_q4": 5.0,
    }  # fmt: skip


def test_metrics_hold_the_loss_that_was_minimised(train_run: TrainRun, settings: Settings) -> None:
    run = train_run("batch_size=2", "accumulate=2", "prior_weight=0.7", "steps=1")
    module, batches = prepared(settings("batch_size=2", "accumulate=2", "prior_weight=0.7", "steps=1"))
    micro = [module.loss(next(batches)) for _ in range(2)]
    row = run.read_metrics()[0]
    assert row["train/loss"] == pytest.approx(sum(losses.total.item() for losses in micro) / 2, rel=1e-6)
    assert row["train/loss_prior"] == pytest.approx(sum(losses.prior.item() for losses in micro) / 2, rel=1e-6)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_the_teacher_is_the_untouched_model_on_the_very_same_latents(settings: Settings, crop: str) -> None:
    given = ("prior=distill", f"data.crop={crop}", "batch_size=2", "accumulate=2", "steps=3", "data.flip=true")
    module, batches = prepared(settings(*given))
    for _ in range(6):
        batch = next(batches)
        losses = module.loss(batch)
        assert losses.prior < 1e-9 < 1e-2 < losses.instance, "the untouched model agrees with itself"
        half = prior_half(batch)
        noised = module.noised(half)
        pred = module.model.predict(noised.noisy_latents, noised.timesteps, module.text(half.input_ids, 0))
        torch.testing.assert_close(batch.teacher, pred, atol=2e-5, rtol=1e-4)


def test_the_teachers_predictions_are_kept_and_a_longer_run_adds_to_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamlab import distill

    monkeypatch.setattr(distill, "CHUNK", 3)
    cache = f"cache_dir={tmp_path / 'cache'}"

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "teacher").rglob("*.safetensors")}

    prepared(settings("prior=distill", cache, "steps=3"))
    short = files()
    prepared(settings("prior=distill", cache, "steps=5", "lr=1e-3"))
    longer = files()
    assert len(short) == 1 and len(longer) == 2 and short.items() <= longer.items()
    prepared(settings("prior=distill", cache, "steps=3", "seed=5"))
    assert len(list((tmp_path / "cache" / "teacher").iterdir())) == 2


@pytest.mark.slow
def test_a_distilled_run_resumes_exactly_and_starts_from_no_prior_loss(train_run: TrainRun) -> None:
    given = ("prior=distill", "lr=1e-4")
    short = train_run(*given, "steps=2", "name=short")
    longer = train_run(*given, "steps=4", "name=longer", f"resume={short.path}")
    at_once = train_run(*given, "steps=4", "name=at_once")
    assert are_identical(weights_of(longer), weights_of(at_once))
    assert at_once.read_metrics()[0]["train/loss_prior"] < 1e-9 < at_once.read_metrics()[-1]["train/loss_prior"]


def test_an_average_follows_its_closed_form_and_is_what_is_saved(train_run: TrainRun) -> None:
    runs = [train_run(f"steps={steps}", "lr=1e-3", f"name={steps}") for steps in (1, 2, 3)]
    averaged = train_run("steps=3", "lr=1e-3", "ema=0.9", "name=averaged")
    one, two, three = (weights_of(run) for run in runs)
    kept = weights_of(averaged)
    for name, weight in kept.items():
        expected = 0.9 * (0.9 * one[name] + 0.1 * two[name]) + 0.1 * three[name]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    assert not are_identical(kept, three)
    last = torch.load(averaged.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(last[f"trained.{name}"], three[name]) for name in kept if name.startswith("unet"))


@pytest.mark.slow
def test_an_average_is_resumed_exactly(train_run: TrainRun) -> None:
    given = ("lr=1e-3", "ema=0.8")
    short = train_run(*given, "steps=2", "name=short")
    longer = train_run(*given, "steps=4", "name=longer", f"resume={short.path}", "sample_every=1")
    at_once = train_run(*given, "steps=4", "name=at_once")
    assert are_identical(weights_of(longer), weights_of(at_once))


def test_a_text_encoder_that_stops_stays_where_it_was(train_run: TrainRun) -> None:
    stopped = weights_of(train_run("steps=4", "text_encoder_stop=2", "name=stopped"))
    two = weights_of(train_run("steps=2", "name=two"))
    on = weights_of(train_run("steps=4", "name=on"))
    encoder = [name for name in stopped if name.startswith("text_encoder")]
    assert all(torch.equal(stopped[name], two[name]) for name in encoder)
    assert any(not torch.equal(on[name], two[name]) for name in encoder)
    assert any(not torch.equal(stopped[name], two[name]) for name in stopped if name.startswith("unet"))


def test_no_clipping_and_the_tutorials_way_to_count(settings: Settings, train_run: TrainRun) -> None:
    config, _ = check(settings("count=micro_batches", "steps=8", "accumulate=4"))
    assert config.steps == 2
    free, clipped = (train_run(f"max_grad_norm={norm}", "steps=1", f"name=n{norm}") for norm in ("null", "1e-3"))
    assert free.read_metrics()[0]["train/grad_norm"] == clipped.read_metrics()[0]["train/grad_norm"] > 1e-3
