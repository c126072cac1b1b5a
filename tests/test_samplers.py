"""Each sampler against plain diffusers; the command in a process of its own, on a run of real photos."""

import inspect
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import TrainRun, start_command
from PIL import Image

from dreamlab.fused import fuse
from dreamlab.models import BUNDLED, Family
from dreamlab.sample import FLOW_SAMPLERS, SAMPLERS, Sampler, draw, keep_on_cpu, main, make_scheduler
from dreamlab.twins import once

PROMPTS, SEEDS = ["a photo of a dog", "a photo of a teapot", "a photo of a dog"], [1, 2, 3]
DIFFUSERS: dict[str, tuple[Any, dict[str, Any]]] = {  # the same samplers, written down once more
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
}
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "dreambooth" / "teapot"


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def drawn(model: Family, sampler: str, batch_size: int) -> list[np.ndarray]:
    """Our pictures of the prompts and seeds above."""
    pictures: list[np.ndarray] = []
    draw(
        model, PROMPTS, SEEDS, Sampler(sampler, 4, 5.0, "blurry", 64, 64), device=torch.device("cpu"),
        precision="fp32", batch_size=batch_size, on_image=lambda k, image: pictures.append(np.asarray(image)),
    )  # fmt: skip
    return pictures


def drawn_by_diffusers(sampler: str) -> list[np.ndarray]:
    """The same, by a plain pipeline with a fresh scheduler for every picture."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(BUNDLED["pocket"])
    pipe.set_progress_bar_config(disable=True)
    fuse([pipe.unet, pipe.vae, pipe.text_encoder])  # as ours, so that only the sampler can differ
    own, (kind, options), pictures = pipe.scheduler.config, DIFFUSERS[sampler], []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        pipe.scheduler = kind.from_config(own, **options)
        with once(pipe.unet, 5.0):
            pictures += pipe(
                prompt, negative_prompt="blurry", num_inference_steps=4, guidance_scale=5.0,
                generator=torch.Generator().manual_seed(seed),
            ).images  # fmt: skip
    return [np.asarray(picture) for picture in pictures]


def test_no_sampler_is_left_out() -> None:
    assert DIFFUSERS.keys() == SAMPLERS.keys()


@pytest.mark.parametrize("sampler", DIFFUSERS)
def test_each_sampler_is_that_of_diffusers_whatever_the_batch(model: Family, sampler: str) -> None:
    alone, pairs, theirs = drawn(model, sampler, 1), drawn(model, sampler, 2), drawn_by_diffusers(sampler)
    for k in range(3):
        assert np.array_equal(alone[k], theirs[k])
        assert apart(pairs[k], theirs[k]) <= 2  # pictures drawn together are rounded differently
    assert apart(alone[0], alone[2]) > 50


def test_samplers_draw_different_pictures(model: Family) -> None:
    first = {sampler: drawn(model, sampler, 3)[0] for sampler in SAMPLERS}
    for one in first:
        assert all(apart(first[one], first[other]) > 2 for other in first if other != one)


def test_samples_of_an_update_show_the_weights_of_that_update(train_run: TrainRun) -> None:
    long, short = train_run("steps=2", "sample_every=1", "lr=1e-3"), train_run("steps=1", "lr=1e-3")
    before, during, after = (pixels_of(long.samples / f"update-00000{k}" / "0000.png") for k in range(3))
    assert apart(before, during) > 2 and apart(during, after) > 2
    assert np.array_equal(during, pixels_of(short.samples / "update-000001" / "0000.png"))


def test_without_guidance_a_negative_prompt_does_nothing(model: Family) -> None:
    pictures: list[np.ndarray] = []
    for guidance, negative in ((1.0, ""), (1.0, "a sepia photo"), (5.0, ""), (5.0, "a sepia photo")):
        draw(
            model, PROMPTS[:1], [1], Sampler("ddim", 3, guidance, negative, 64, 64), device=torch.device("cpu"),
            precision="fp32", batch_size=1, on_image=lambda k, image: pictures.append(np.asarray(image)),
        )  # fmt: skip
    assert np.array_equal(pictures[0], pictures[1])
    assert apart(pictures[2], pictures[3]) > 20


def test_a_run_without_a_model_is_named(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run("steps=1")
    run.model.rename(run.path / "elsewhere")
    capsys.readouterr()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: let the end of the test put it back
    monkeypatch.setattr(sys, "argv", ["sample", f"run={run.path}", "prompt=a dog"])
    with pytest.raises(SystemExit) as stopped:
        main()
    (told,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert "has not finished" in told and "Resume it" in told


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not here")
def test_a_run_on_real_photos_draws_its_samples_again_in_another_process(train_run: TrainRun, tmp_path: Path) -> None:
    run = train_run(f"instance_dir={SHARED}", "class_word=teapot", "resolution=64", "lr=1e-3", "sampling.guidance=3")
    assert len(run.read_card()["photos"]) >= 4 and len(run.read_metrics()) == 2
    out, log = tmp_path / "drawn", tmp_path / "log.txt"
    words = (f"run={run.path}", "prompt=a photo of a zwx teapot", "n=2", "steps=2", f"out={out}", "device=cpu")
    process = start_command("dreamlab.sample", *words, log=log)
    assert process.wait(120) == 0, log.read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "grid.png"]
    assert apart(pixels_of(out / "0000.png"), pixels_of(run.samples / "update-000002" / "0000.png")) <= 1


@pytest.mark.parametrize("sampler", [*SAMPLERS, *FLOW_SAMPLERS])
def test_a_sampler_keeps_its_timesteps_on_the_cpu_whatever_device_a_pipeline_asks_for(sampler: str) -> None:
    plain, kept = make_scheduler(sampler, {}), keep_on_cpu(make_scheduler(sampler, {}))
    plain.set_timesteps(7, device="cpu")
    kept.set_timesteps(7, device="meta")  # where no number can be read
    assert torch.equal(kept.timesteps, plain.timesteps)
    parameters = inspect.signature(kept.set_timesteps).parameters  # by which a pipeline knows whether it takes sigmas
    assert parameters == inspect.signature(plain.set_timesteps).parameters
