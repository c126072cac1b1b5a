"""Flow matching: its noise, target and timesteps against diffusers' scheduler and against closed forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from scipy import integrate
from scipy.special import logit
from test_update import prepared
from tiny_models import save_tiny_3, save_tiny_flux, save_tiny_xl
from torch.nn.functional import mse_loss

from dreamlab import assemble, feed
from dreamlab.diffusion import add_noise, flow_schedule, target
from dreamlab.errors import UserError
from dreamlab.halves import halved
from dreamlab.low_rank import layers_of
from dreamlab.models import Options, load
from dreamlab.randomness import timesteps
from dreamlab.resume import Start
from dreamlab.sample import Sampler, draw

TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noising_is_that_of_diffusers_and_the_target_is_the_way_from_picture_to_noise(shift: float) -> None:
    latents, noise = torch.randn(2, 6, 16, 8, 8, generator=torch.Generator().manual_seed(1)).unbind(0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = flow_schedule(scheduler.sigmas.flip(0))
    told = schedule.told[TIMESTEPS]
    assert set(told.tolist()) <= set(scheduler.timesteps.tolist()) and told[-1] == 1000
    noisy = add_noise(latents, noise, TIMESTEPS, schedule)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, told, noise), rtol=1e-6, atol=1e-6)
    share = schedule.noise[TIMESTEPS].reshape(-1, 1, 1, 1)
    velocity = target(latents, noise, TIMESTEPS, schedule)
    torch.testing.assert_close(noisy - share * velocity, latents, rtol=1e-5, atol=1e-5)  # a straight line
    torch.testing.assert_close(schedule.snr[TIMESTEPS], (schedule.signal / schedule.noise)[TIMESTEPS].square())


def test_logit_normal_timesteps_have_the_papers_density() -> None:
    def density(t: float) -> float:  # arXiv 2403.03206, eq. 19, m = 0 and s = 1
        return float(np.exp(-(logit(t) ** 2) / 2) / np.sqrt(2 * np.pi) / (t * (1 - t)))

    samples = list(range(20_000))
    drawn = (timesteps(7, 0, samples, [False] * 20_000, 1000, "logit_normal").double() + 0.5) / 1000
    for power in (1, 2, 4):
        expected = integrate.quad(lambda t, power=power: t**power * density(t), 0, 1)[0]
        assert (drawn**power).mean().item() == pytest.approx(expected, abs=0.005)
    middle = integrate.quad(density, 0.25, 0.75)[0]
    assert ((drawn > 0.25) & (drawn < 0.75)).double().mean().item() == pytest.approx(middle, abs=0.01)
    assert middle == pytest.approx(0.728, abs=1e-3)  # a uniform one's is a half


def test_a_timestep_is_a_function_of_its_sample_alone() -> None:
    whole = timesteps(7, 3, [0, 1, 2], [False, True, False], 1000, "logit_normal")
    for k, is_prior in enumerate((False, True, False)):
        assert timesteps(7, 3, [k], [is_prior], 1000, "logit_normal").tolist() == [whole[k].item()]
    with pytest.raises(ValueError, match="known: uniform, logit_normal"):
        timesteps(7, 3, [0], [False], 1000, "cosine")


def test_loss_is_the_plain_velocity_loss(settings: Settings, tmp_path: Path) -> None:
    words = ("model=sd35", f"model.source={save_tiny_3(tmp_path / 'sd3')}", "resolution=32", "precision=fp32")
    words = (*words, "model.gradient_checkpointing=false", "data.crop=random", "prior_weight=0")
    model, sets, module, _ = prepared(settings(*words))
    batch = next(iter(feed.batches(settings(*words), sets, Start(""), module)))
    noised = module.noised(batch)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noisy = scheduler.scale_noise(noised.latents, model.schedule.told[noised.timesteps], noised.noise)
    embeds, _, pooled, _ = model.pipeline().encode_prompt("a photo of a zwx dog", None, None, device="cpu")
    pred = model.parts()["transformer"](
        noisy, timestep=model.schedule.told[noised.timesteps], encoder_hidden_states=embeds, pooled_projections=pooled
    ).sample
    torch.testing.assert_close(module.loss(batch).total, mse_loss(pred, noised.noise - noised.latents))
    vae = model.parts()["vae"]
    assert batch.pixel_values is not None
    shifted = (vae.encode(batch.pixel_values).latent_dist.mean - 0.0609) * 1.5305
    torch.testing.assert_close(module.moments(batch)[0], shifted)


@pytest.mark.parametrize("make", [save_tiny_3, save_tiny_xl, save_tiny_flux])
def test_a_network_that_draws_in_half_precision_is_told_timesteps_and_sizes_exactly(make: Any, tmp_path: Path) -> None:
    model = load(None, str(make(tmp_path / "model")))
    (name,) = {"transformer", "unet"} & model.parts().keys()
    latents = torch.randn(2, 16 if name == "transformer" else 4, 4, 4, generator=torch.Generator().manual_seed(1))
    told, sizes = torch.tensor([997.3, 3.2]), torch.tensor([[1501.0, 999, 1, 0, 513, 511]] * 2)
    with torch.no_grad():
        text = model.encode_text(model.tokenize(["a dog", "a cat"]))
        own = model.parts()[name]
        before = {key: weight.clone() for key, weight in own.state_dict().items()}
        with halved([own], torch.bfloat16):
            ours = model.predict(latents, told, {**text, "sizes": sizes})
        assert all(torch.equal(weight, before[key]) for key, weight in own.state_dict().items())
        setattr(model, name, own.to(torch.bfloat16))
        low = {key: value.bfloat16() for key, value in text.items()}
        theirs = model.predict(latents.bfloat16(), told, {**low, "sizes": sizes})
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs.float())


def test_flux_packs_latents_and_tells_places_as_its_pipeline_does(tmp_path: Path) -> None:
    """One Euler step of the pipeline from noise, without a VAE, at the strength of guidance that is taught."""
    model = load(None, str(save_tiny_flux(tmp_path / "model")))
    assert model.family == "flux" and model.default_resolution() == 1024
    pipe, side = model.pipeline(), 64
    drawn = pipe(
        "a photo of a dog", num_inference_steps=1, guidance_scale=1.0, height=side, width=2 * side,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images[0]  # fmt: skip
    height, width = side // model.latent_factor(), 2 * side // model.latent_factor()
    noise = torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        text = model.encode_text(model.tokenize(["a photo of a dog"]))
        velocity = model.predict(noise, torch.tensor([1000.0]), text)
    unpacked = pipe._unpack_latents(drawn[None], side, 2 * side, pipe.vae_scale_factor)
    torch.testing.assert_close(noise - velocity, unpacked, rtol=1e-5, atol=1e-5)  # from sigma 1 to 0


def test_flux_of_full_size_has_the_published_weights_and_an_adapter_beside_every_attention_layer() -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)  # diffusers' defaults are those of dev
    assert sum(weight.numel() for weight in network.parameters()) == 11_901_408_320
    chosen = layers_of("transformer", network, ["attention"], [""])
    assert len(chosen) == 19 * 8 + 38 * 3  # q, k, v, out of picture and text; the single stream's out is its MLP's, too
    more = layers_of("transformer", network, ["attention", "feed_forward"], [""])
    assert len(more) == len(chosen) + 19 * 4 + 38 * 2


@pytest.mark.parametrize(("make", "times"), [(save_tiny_3, 3), (save_tiny_flux, 2)])
def test_drawing_reads_each_prompt_once_and_draws_what_the_pipeline_would(
    make: Any, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 is large: it is not to be on the GPU with the rest, and not to be brought there for each batch."""
    model, drawn, read = load(None, str(make(tmp_path / "model"))), {}, []
    encode = model.encode_text

    def counted(ids: torch.Tensor) -> Any:
        read.append(len(ids))
        return encode(ids)

    monkeypatch.setattr(model, "encode_text", counted)
    pipe, asked = model.pipeline(), ["a dog", "a cat", "a dog", "a cat"]
    how = Sampler("flow_euler", 2, 3.0, "", 32, 32)
    draw(model, asked, range(4), how, device=torch.device("cpu"), precision="fp32", batch_size=3,
         on_image=drawn.__setitem__)  # fmt: skip
    assert read == [1] * times, "both and, but of FLUX.1, the empty prompt that guidance is away from"
    for number, prompt in enumerate(asked):
        stream = torch.Generator().manual_seed(number)
        (theirs,) = pipe(
            prompt, generator=stream, num_inference_steps=2, guidance_scale=3.0, height=32, width=32
        ).images  # fmt: skip
        assert np.abs(np.asarray(drawn[number]).astype(int) - np.asarray(theirs)).max() <= 1


def test_t5_waits_on_the_cpu_unless_text_learns(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"model.source={save_tiny_3(tmp_path / 'model')}"
    monkeypatch.setattr(assemble, "pick_device", lambda _: torch.device("meta"))  # a device that takes no memory
    for learns, where in (("transformer", "cpu"), ("transformer,text_encoder", "meta")):
        model = assemble.base_model(settings("model=sd35", source, f"adapter.train=[{learns}]"))
        found = {name: next(part.parameters()).device.type for name, part in model.parts().items()}
        assert found == {
            "transformer": "meta", "vae": "meta",
            "text_encoder": where, "text_encoder_2": where, "text_encoder_3": where,
        }  # fmt: skip


def test_flux_reads_no_layer_of_clip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clip_skip=1"):
        load(None, str(save_tiny_flux(tmp_path / "model")), options=Options(clip_skip=1))


def test_without_t5_zeros_stand_for_it(tmp_path: Path) -> None:
    folder = str(save_tiny_3(tmp_path / "sd3"))
    whole, without = load(None, folder), load(None, folder, options=Options(without=("text_encoder_3",)))
    ids = whole.tokenize(["a photo of a dog"])
    assert ids.shape == (1, 77 + 77 + 256) and torch.equal(without.tokenize(["a photo of a dog"]), ids[:, :154])
    with torch.no_grad():
        one, other = whole.encode_text(ids)["hidden"], without.encode_text(ids[:, :154])["hidden"]
    assert torch.equal(one[:, :77], other[:, :77]) and one[:, 77:].any() and not other[:, 77:].any()
