"""What the tests share: synthetic photos, composed settings, and tiny runs of the miniature model on the CPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from dreamlab import assemble
from dreamlab.config import conf_dir, register_schemas
from dreamlab.models import Family, load
from dreamlab.runs import RunDirectory
from dreamlab.schema import Train
from dreamlab.train import train

TINY = (  # half of pocket's own side: a quarter of the time
    "class_word=dog", "steps=2", "batch_size=1", "num_prior_images=2", "prior.steps=2", "sampling.steps=2",
    "resolution=32", "logger=none", "eval=none", 'prompts=["a photo of a {token} {class_word}"]', "device=cpu",
)  # fmt: skip

Settings = Callable[..., Train]
TrainRun = Callable[..., RunDirectory]


def noise_picture(seed: int, size: tuple[int, int] = (80, 64)) -> Image.Image:
    """A smooth, colourful picture that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def weights_in(model: Family) -> dict[str, torch.Tensor]:
    """Every weight of a model, by part and name."""
    return {f"{part}.{key}": w for part, network in model.parts().items() for key, w in network.state_dict().items()}


def weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    """Every weight of the model that a finished run saved, read back from its files."""
    return weights_in(load("stable_diffusion", str(run.model)))


def are_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start_command(*words: str, log: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """`python -m <words>` in a process of its own, its output going to `log`."""
    # One file for both streams, so that a failing test can show what happened in its order
    with log.open("wb") as file:
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})


@pytest.fixture(scope="session", autouse=True)
def class_image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of class images for all tests of the process, so that few are drawn; never the person's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DREAMLAB_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three photos."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        noise_picture(seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(photos: Path) -> tuple[str, ...]:
    """The command line of a tiny run on the photos, without `out`."""
    return (f"instance_dir={photos}", *TINY)


@pytest.fixture(scope="session")
def settings(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`settings("steps=3", ...)`: what the command line would give a tiny run; `out` is a fresh folder by default."""
    register_schemas()

    def compose_settings(*overrides: str) -> Train:
        out = tmp_path_factory.mktemp("outputs")
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            config = OmegaConf.to_object(compose("train", [*tiny, f"out={out}", *overrides]))
        assert isinstance(config, Train)
        return config

    return compose_settings


@pytest.fixture
def train_run(settings: Settings, tmp_path: Path) -> TrainRun:
    """`train_run("steps=3", ...)`: train in this process and return the run, below the test's own folder."""
    return lambda *overrides: train(settings(f"out={tmp_path / 'outputs'}", *overrides))


@pytest.fixture
def model(settings: Settings) -> Family:
    """The untouched, frozen miniature model."""
    return assemble.base_model(settings())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that selenium drives; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
