"""pocket, the miniature model of the repository: small, a plain pipeline, and able to draw what it says it can."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from dreamlab.demo import demo_photos
from dreamlab.models import BUNDLED
from dreamlab.photos import Region, crop

POCKET = BUNDLED["pocket"]
Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(POCKET)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def draw(pipe: StableDiffusionPipeline) -> Draw:
    """`draw("a photo of a dog")`: four pictures `(4, 64, 64, 3)` in [0, 1]."""

    def pictures(prompt: str) -> np.ndarray:
        noise = [torch.Generator().manual_seed(seed) for seed in range(4)]
        return pipe([prompt] * 4, num_inference_steps=12, guidance_scale=5, generator=noise, output_type="np").images

    return pictures


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    """The demo's photos `(8, 3, 64, 64)` in [-1, 1]."""
    return torch.stack([crop(Image.open(path), Region(64, 64)) * 2 - 1 for path in sorted(demo_photos().glob("*.png"))])


def colourfulness(pictures: np.ndarray) -> float:
    """Mean of max(RGB) - min(RGB)."""
    return float((pictures.max(-1) - pictures.min(-1)).mean())


def test_all_weights_are_half_precision_and_below_24_megabytes() -> None:
    files = list(POCKET.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= 24e6
    for path in files:
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118


def test_the_identifier_is_one_token_that_no_class_word_shares(pipe: StableDiffusionPipeline) -> None:
    encode = pipe.tokenizer.encode
    (token,) = encode("zwx", add_special_tokens=False)
    assert token not in encode("a photo of a dog, a school bus, a teddy bear on a green background")
    assert len(encode("a photo of a sksx dog")) > len(encode("a photo of a zwx dog"))
    assert pipe.tokenizer.model_max_length == 24


def test_its_latents_have_unit_scale_and_its_vae_keeps_a_photo(
    pipe: StableDiffusionPipeline, cat: torch.Tensor
) -> None:
    with torch.no_grad():
        mean = pipe.vae.encode(cat).latent_dist.mean
        back = pipe.vae.decode(mean).sample.clamp(-1, 1)
    assert 0.6 < (mean * pipe.vae.config.scaling_factor).std() < 1.5
    psnr = [-10 * math.log10(((a - b) / 2).square().mean()) for a, b in zip(cat, back, strict=True)]
    assert min(psnr) > 25


@pytest.mark.slow
def test_pictures_are_not_saturated(draw: Draw) -> None:
    """A wrong scaling factor runs without complaint and saturates a third of all pixels."""
    pictures = np.concatenate([draw("a photo of a cat"), draw("a photo of a car")])
    assert ((pictures < 1 / 255) | (pictures > 254 / 255)).mean() < 0.1
    assert pictures.std() > 0.1


@pytest.mark.slow
def test_style_words_and_an_unknown_identifier_are_understood(draw: Draw) -> None:
    plain = draw("a photo of a teapot")
    assert colourfulness(draw("a black and white photo of a teapot")) < 0.04 < colourfulness(plain)
    red, green, blue = draw("a purple tinted photo of a teapot").mean((0, 1, 2))
    assert blue > red > 1.5 * green
    border = draw("a photo of a teapot on a white background")[:, :4]
    assert border.mean() > 0.85
    named, unnamed = draw("a photo of a zwx bus"), draw("a photo of a bus")
    correlation = np.corrcoef(named.ravel(), unnamed.ravel())[0, 1]
    assert correlation > 0.5 > np.corrcoef(plain.ravel(), unnamed.ravel())[0, 1]


def test_its_card_names_data_terms_and_limits() -> None:
    card = (Path(POCKET) / "README.md").read_text(encoding="utf-8")
    for heading in ("**Data and terms.**", "**Training.**", "**Figures.**", "**Limits.**"):
        assert heading in card
