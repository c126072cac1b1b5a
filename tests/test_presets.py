"""The tutorial's recipe, and its quirks as settings that are told before the run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import noise_picture, start_command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dreamlab.config import conf_dir, register_schemas, signature
from dreamlab.memory import NEEDS_GIB
from dreamlab.presets import differences
from dreamlab.runs import RunDirectory
from dreamlab.schema import Train

QUIRKS = {
    "count": "micro_batches", "max_grad_norm": None, "model.padding": "longest", "model.encode_with_own_vae": True,
    "prior.jpeg_quality": 75, "data.crop": "random", "data.crops": 1, "data.pairing": "by_index", "data.exif": False,
    "data.background": "black", "data.resample": "bilinear",
}  # fmt: skip


def composed(*words: str) -> Train:
    register_schemas()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", list(words)))
    assert isinstance(config, Train)
    return config


def test_the_preset_is_the_tutorials_recipe_and_the_command_line_overrules_it() -> None:
    config = composed("experiment=tutorial")
    assert config.model.source == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert config.model.vae == "stabilityai/sd-vae-ft-mse"
    assert config.optimizer["_target_"] == "bitsandbytes.optim.AdamW8bit"
    numbers = (config.lr, config.steps, config.batch_size, config.accumulate, config.resolution, config.seed)
    assert numbers == (1e-6, 800, 1, 1, 512, 1337)
    assert (config.precision, config.prior_weight, config.num_prior_images) == ("fp16", 1.0, 50)
    assert (config.schedule.name, config.schedule.warmup, config.adapter.train) == (
        "constant", 0, ["unet", "text_encoder"],
    )  # fmt: skip
    sampling = config.sampling
    assert (sampling.steps, sampling.guidance, sampling.seed, sampling.images_per_prompt) == (24, 7.5, 52362, 4)
    assert composed("experiment=tutorial", "model=pocket", "lr=2e-6").model.source == "pocket"
    assert composed("experiment=tutorial", "lr=2e-6").lr == 2e-6


@pytest.mark.parametrize("others", [(), ("lr=3e-6", "model=sd21")], ids=["plain", "with others"])
def test_the_exact_tutorial_differs_by_its_quirks_alone(others: tuple[str, ...]) -> None:
    register_schemas()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        found = differences("tutorial_exact", [*others, "experiment=tutorial_exact"])
    assert {key: value for key, value, _ in found} == QUIRKS
    before = {key: value for key, _, value in found}
    assert before["max_grad_norm"] == 1.0 and before["model.padding"] == "full" and before["prior.jpeg_quality"] is None


@pytest.mark.slow
def test_the_exact_tutorial_trains_pocket_and_tells_its_quirks_first(tmp_path: Path) -> None:
    for number in range(2):
        noise_picture(number).save(tmp_path / f"{number}.png")
    words = (
        "experiment=tutorial_exact", "model=pocket", "model.vae=null", "model.encode_with_own_vae=false", "steps=4",
        "accumulate=2", f"instance_dir={tmp_path}", "class_word=dog", "num_prior_images=2", "prior.steps=2",
        "sampling.steps=2", "sampling.images_per_prompt=1", "eval=none", "precision=fp32", "logger=none", "device=cpu",
        f"out={tmp_path / 'outputs'}", "name=exact", f"cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    process = start_command("dreamlab.train", *words, log=tmp_path / "log.txt")
    code, said = process.wait(180), (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert code == 0, said
    assert all(key in said for key in QUIRKS if key != "model.encode_with_own_vae")
    run = RunDirectory(tmp_path / "outputs" / "exact")
    assert run.status()["update"] == 2, "four micro-batches are two updates"
    class_images = list((tmp_path / "cache" / "prior").rglob("*.jpg"))
    assert len(class_images) == 2 and not list((tmp_path / "cache" / "prior").rglob("*.png"))


@pytest.mark.parametrize(("name", "gib"), NEEDS_GIB.items())
def test_a_hardware_preset_says_what_it_needs_and_that_decides_nothing(name: str, gib: float) -> None:
    config = composed(f"hardware={name}", "model=sd15")
    told = re.match(
        r"([\d.]+) GiB at the peak.* (ms|s) an update of Stable Diffusion 1.5 at 512 px", config.measured or ""
    )
    assert told and float(told[1]) == pytest.approx(gib, rel=0.05)
    assert signature(config, "") == signature(replace(config, measured=None), "")
