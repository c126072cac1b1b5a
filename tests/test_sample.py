"""Samples: the same picture for the same seed, from any sampler, and training none the wiser."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TrainRun, are_identical, weights_of
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from tiny_models import save_tiny

from dreamlab.commands import Export, Sample
from dreamlab.export import export
from dreamlab.pictures import grid, read_settings
from dreamlab.sample import SAMPLERS, filled, main, sample


def draw(out: Path, **settings: object) -> list[np.ndarray]:
    """The pictures that `python -m dreamlab.sample` makes of the miniature model, as integers."""
    given: dict = {"run": "pocket", "prompt": "a photo of a dog", "n": 1, "steps": 3, "device": "cpu", **settings}
    folder = sample(Sample(out=str(out), **given))
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))]


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures, in levels of 255."""
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_and_says_how_in_the_file(tmp_path: Path, sampler: str) -> None:
    settings = {"sampler": sampler, "steps": 4, "guidance": 3.0, "negative_prompt": "a blurry photo", "seed": 5}
    pictures = draw(tmp_path, n=2, **settings)
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    assert apart(*pictures) > 50 and all(picture.std() > 10 for picture in pictures)
    assert read_settings(tmp_path / "0001.png") == {
        "prompt": "a photo of a dog", "seed": 6, "model": "pocket", "sampler": sampler, "steps": 4, "guidance": 3.0,
        "negative_prompt": "a blurry photo", "height": 64, "width": 64,
    }  # fmt: skip
    with Image.open(tmp_path / "0001.png") as image:
        assert image.info["parameters"].startswith("a photo of a dog\nNegative prompt: a blurry photo\nseed: 6")
    assert (tmp_path / "grid.png").is_file()


def test_image_k_of_a_seed_is_the_first_of_seed_plus_k(tmp_path: Path) -> None:
    three = draw(tmp_path / "a", n=3, seed=7)
    third = draw(tmp_path / "b", n=1, seed=9)
    assert apart(three[2], third[0]) <= 1  # batched and single convolutions round differently


@pytest.mark.parametrize(("at_once", "parts"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3])])
def test_many_pictures_are_decoded_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, parts: list[int]
) -> None:
    decoded = []
    decode = AutoencoderKL.decode

    def counted(vae: AutoencoderKL, latents: torch.Tensor, **settings: object) -> object:
        decoded.append(len(latents))
        return decode(vae, latents, **settings)

    monkeypatch.setattr(AutoencoderKL, "decode", counted)
    whole = draw(tmp_path / "whole", n=3)
    monkeypatch.setattr("dreamlab.sample.DECODED_PX", at_once * 64 * 64 + 63)
    some = draw(tmp_path / "some", n=3)
    assert decoded == [3, *parts]
    assert max(map(apart, whole, some)) <= 1  # batched and single convolutions round differently


def test_prompt_negative_prompt_guidance_and_size_have_an_effect(tmp_path: Path) -> None:
    (plain,) = draw(tmp_path / "plain")
    for number, change in enumerate(({"prompt": "a photo of a bus"}, {"negative_prompt": "a dog"}, {"guidance": 1.0})):
        (changed,) = draw(tmp_path / str(number), **change)
        assert apart(plain, changed) > 20, change
    (wide,) = draw(tmp_path / "wide", width=96, height=32)
    assert wide.shape == (32, 96, 3)


def test_several_prompts_are_rows_of_one_grid(tmp_path: Path) -> None:
    pictures = draw(tmp_path, prompt="a photo of a dog|a photo of a cat", n=2)
    assert len(pictures) == 4
    assert [read_settings(tmp_path / f"{k:04d}.png")["prompt"] for k in (1, 2)] == [
        "a photo of a dog", "a photo of a cat",
    ]  # fmt: skip


def test_guidance_scales_are_rows_of_their_prompt_and_said_in_each_file(tmp_path: Path) -> None:
    pictures = draw(tmp_path / "all", prompt="a photo of a dog|a photo of a cat", n=2, guidance=[1, 4.5], seed=9)
    about = [read_settings(tmp_path / "all" / f"{k:04d}.png") for k in range(8)]
    assert [(one["prompt"][-3:], one["guidance"], one["seed"]) for one in about] == [
        (noun, scale, seed) for noun in ("dog", "cat") for scale in (1.0, 4.5) for seed in (9, 10)
    ]  # fmt: skip
    (alone,) = draw(tmp_path / "alone", prompt="a photo of a cat", guidance=4.5, seed=10)
    assert apart(alone, pictures[7]) <= 2 and apart(alone, pictures[5]) > 20
    with Image.open(tmp_path / "all" / "grid.png") as sheet:
        assert sheet.width > 2 * 160 and sheet.height > 4 * 160


def test_a_folder_a_file_and_a_run_are_all_drawn_with(train_run: TrainRun, tmp_path: Path) -> None:
    folder = save_tiny(1, tmp_path / "tiny")
    file = export(Export(run=str(folder), out=str(tmp_path / "tiny.safetensors"), dtype="fp32"))
    run = train_run(f"model.source={folder}", "resolution=32", "lr=1e-9", "steps=1", "sampling.guidance=3")
    of_folder = draw(tmp_path / "a", run=str(folder), guidance=[1, 3])
    of_file = draw(tmp_path / "b", run=str(file), config=str(folder), guidance=[1, 3])
    (of_run,) = draw(tmp_path / "c", run=str(run.path))  # guidance as its own samples
    assert max(map(apart, of_folder, of_file)) <= 1 and apart(*of_folder) > 1
    assert apart(of_run, of_folder[1]) <= 1


def test_grid_labels_of_any_length_stay_in_their_column() -> None:
    tile = Image.new("RGB", (32, 32), "blue")
    for label in ("base model", "a very long prompt of many words " * 9, "w" * 300, ""):
        sheet = np.asarray(grid([(label, [tile, tile]), ("next", [tile])], ["seed 1", "a title that is long"], 100))
        left = sheet.shape[1] - 2 * 106
        is_blue = (sheet == (0, 0, 255)).all(2)
        assert is_blue[:, left : left + 100].sum() == 2 * 100 * 100 and not is_blue[:, :left].any()
        assert (sheet[:, left - 6 : left] == 255).all(), "no letter reaches the pictures"
        assert left <= 112


@pytest.mark.slow
def test_sampling_at_every_update_leaves_the_training_as_it_is(train_run: TrainRun) -> None:
    quiet = train_run("steps=3", "name=quiet")
    watched = train_run("steps=3", "name=watched", "sample_every=1", "sampling.sampler=pndm", "sampling.steps=3")
    losses = [[row["train/loss"] for row in run.read_metrics()] for run in (quiet, watched)]
    assert losses[0] == losses[1]
    assert are_identical(weights_of(quiet), weights_of(watched))
    assert len(list(watched.samples.glob("update-*"))) == 4


@pytest.mark.slow
def test_diffusers_alone_draws_the_runs_samples_from_its_saved_model(train_run: TrainRun) -> None:
    run = train_run("resolution=64", "lr=1e-4", "sampling.steps=4", "sampling.guidance=4")
    pipe = StableDiffusionPipeline.from_pretrained(run.model)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    drawn = pipe(
        "a photo of a zwx dog", negative_prompt="", num_inference_steps=4, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(52362),
    ).images[0]  # fmt: skip
    ours = np.asarray(Image.open(run.samples / "update-000002" / "0000.png")).astype(int)
    assert apart(np.asarray(drawn).astype(int), ours) <= 1
    base = np.asarray(Image.open(run.samples / "update-000000" / "0000.png")).astype(int)
    assert apart(base, ours) > 5

    again = sample(Sample(run=str(run.path), prompt="a photo of a zwx dog", n=1, steps=4, device="cpu"))
    assert again.is_relative_to(run.path)
    assert apart(np.asarray(Image.open(again / "0000.png")).astype(int), ours) <= 1  # the run's own guidance


@pytest.mark.parametrize(
    ("typed", "parts"),
    {
        "sampler=dddim": ("sampler=dddim", "Did you mean 'ddim'?"),
        "n=0": ("n=0", "1 or more"),
        "height=65": ("height=65", "multiple of 8"),
        "steps=-3": ("steps=-3", "1 or more"),
        "run=./nowhere": ("no model at './nowhere'", "a hub id, a folder"),
        "prompt=''": ("prompt is empty", "Say what to draw"),
        "promt=dog": ("'promt'", "Did you mean 'prompt'?"),
        "precision=fp8": ("precision=fp8", "fp32"),
        "guidance=strong": ("guidance=strong", "several such as"),
        "guidance=[3,-1]": ("guidance=[3, -1]", "0 or more"),
        "guidance=[]": ("guidance=[]", "give a number"),
        "guidance=true": ("guidance=True", "give a number"),
        "guidance=inf": ("guidance=inf", "give a number"),
        "guidance=3,5": ("guidance=3,5 has a comma", "guidance=[3,5]"),
        "prompt='a dog|'": ("nothing on one side", "separates prompts"),
    }.items(),
)
def test_a_bad_setting_is_named_with_its_remedy(
    typed: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["sample", "run=pocket", "prompt=dog", f"out={tmp_path / 'out'}", typed])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    assert said.startswith("dreamlab: ") and all(part in said for part in parts), said
    assert not (tmp_path / "out").exists()


def test_a_missing_prompt_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["sample", "run=pocket"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "prompt" in said and "Traceback" not in said


@pytest.mark.parametrize(("count", "batch_size", "drawn"), [(50, 4, 52), (5, 4, 5), (3, 4, 3), (8, 4, 8), (0, 4, 0)])
def test_a_last_batch_that_is_half_full_is_filled(count: int, batch_size: int, drawn: int) -> None:
    items = filled(range(count), batch_size)
    assert len(items) == drawn and items[:count] == [*range(count)]
