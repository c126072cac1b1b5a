"""Frozen weights kept in half precision: the numbers of an update and of pictures stay the same, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, weights_in
from PIL import Image
from test_matrix import ROWS
from torch import Tensor

from dreamlab import assemble, feed, frozen, learning
from dreamlab.checks import check
from dreamlab.commands import Sample
from dreamlab.data import TrainingData
from dreamlab.precision import autocast
from dreamlab.sample import sample


def an_update(config: Any) -> tuple[dict[str, Tensor], int, list[np.ndarray]]:
    """Loss and gradients of one update, the bytes of all networks but VAEs and T5, and the class images."""
    config, subject = check(config)
    model = assemble.base_model(config)
    learning.add_words(config, subject, model)
    sets = feed.image_sets(config, subject, model)
    module = assemble.module(config, model)
    stream = torch.Generator().manual_seed(5)
    learns = {name: weight for name, weight in module.trained.named_parameters() if weight.requires_grad}
    for weight in learns.values():  # what peft begins with depends on the layer's dtype
        assert weight.dtype == torch.float32
        weight.data = torch.randn(weight.shape, generator=stream) * 0.05
    with autocast(config.precision, torch.device("cpu")):
        loss = module.loss(TrainingData(sets, 1, 1, 1).batch(0, 0)).total
    loss.backward()
    found = {"loss": loss.detach(), **{name: weight.grad for name, weight in learns.items() if weight.grad is not None}}
    held = {
        name: weight for name, weight in weights_in(model).items() if not name.startswith(("vae", "text_encoder_3"))
    }
    pictures = [np.asarray(Image.open(item.path)) for one in sets[1:] for item in one.items]
    return found, sum(weight.numel() * weight.element_size() for weight in held.values()), pictures


@pytest.mark.parametrize(
    ("family", "adapter"),
    [*((family, "lora") for family in ROWS), ("stable_diffusion", "textual_inversion"), ("sdxl", "textual_inversion")],
)
def test_an_update_beside_frozen_weights_in_half_precision_is_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, adapter: str
) -> None:
    make, name, _ = ROWS[family]
    words = (f"model={name}", f"model.source={make(tmp_path / 'model')}", "model.variant=null", f"adapter={adapter}")
    precision = "fp16" if family == "stable_diffusion" else "bf16"
    words = (*words, f"precision={precision}", "resolution=32")
    ours, size, pictures = an_update(settings(*words, f"cache_dir={tmp_path / 'ours'}"))
    monkeypatch.setattr(frozen, "keep_in", lambda *_: None)
    theirs, whole, others = an_update(settings(*words, f"cache_dir={tmp_path / 'theirs'}"))
    assert ours.keys() == theirs.keys() and len(ours) > 1
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    assert len(pictures) == 2 * (adapter == "lora") and np.array_equal(pictures, others), "class images, too"
    assert size < 0.8 * whole  # of a tiny model: the rest is embeddings


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        (("adapter=lora", "precision=bf16"), torch.bfloat16),
        (("adapter=lora", "precision=fp16"), torch.float16),
        (("adapter=lora", "precision=fp32"), torch.float32),
        (("adapter=full", "precision=bf16"), torch.float32),  # master weights
        (("adapter=dora", "precision=bf16"), torch.float32),  # whose lengths are those of the weights
    ],
)
def test_only_weights_that_never_learn_are_kept_in_half(
    settings: Settings, words: tuple[str, ...], dtype: torch.dtype
) -> None:
    unet: Any = assemble.base_model(check(settings(*words))[0]).parts()["unet"]
    assert unet.conv_in.weight.dtype == unet.conv_in.bias.dtype == unet.time_embedding.linear_1.weight.dtype == dtype
    assert unet.conv_norm_out.weight.dtype == torch.float32


def test_what_such_a_run_has_drawn_its_saved_adapter_draws(train_run: TrainRun, tmp_path: Path) -> None:
    """The run draws beside weights in bfloat16; what it leaves is drawn with by merging into those of the files."""
    run = train_run("adapter=lora", "precision=bf16", "lr=1e-3", "steps=3")
    order = Sample(run=str(run.path), prompt="a photo of a zwx dog", n=1, steps=2, out=str(tmp_path / "drawn"),
                   precision="bf16", height=32, width=32)  # fmt: skip
    theirs = np.asarray(Image.open(run.samples / "update-000003" / "0000.png")).astype(int)
    ours = np.asarray(Image.open(sample(order) / "0000.png")).astype(int)
    assert np.abs(theirs - ours).mean() < 2  # of 255
