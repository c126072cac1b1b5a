"""Models of full size without weights have the published numbers of parameters."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parent.parent / "experiments" / "full-size" / "make.py"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_full_size", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_network_has_as_many_parameters_as_the_published_one(make: ModuleType) -> None:
    words = make.tokenizer()
    with torch.device("meta"):  # shapes without the gigabytes
        networks = [make.networks_xl(words), make.networks_35(words, True)]
    counts = [{name: sum(w.numel() for w in part.parameters()) for name, part in one.items()} for one in networks]
    assert counts[0] == {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    }  # fmt: skip
    assert counts[1] == {
        "transformer": 2_243_171_520, "vae": 83_819_683, "text_encoder": 123_650_304, "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    }  # fmt: skip


def test_a_folder_is_a_model_that_dreamlab_loads(
    make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamlab.models import load

    for shape, width in ((make.CLIP_L, 32), (make.CLIP_G, 64)):
        narrow = {"hidden_size": width, "projection_dim": width, "intermediate_size": 64, "num_hidden_layers": 1}
        for key, value in {**narrow, "num_attention_heads": 2}.items():
            monkeypatch.setitem(shape, key, value)
    monkeypatch.setitem(make.VAE_35, "block_out_channels", (32,) * 4)
    small = {"num_layers": 1, "num_attention_heads": 1, "caption_projection_dim": 64, "pooled_projection_dim": 96}
    for key, value in {**small, "joint_attention_dim": 128, "dual_attention_layers": (0,)}.items():
        monkeypatch.setitem(make.TRANSFORMER_35, key, value)
    folder = make.make("sd35", tmp_path / "sd35", has_t5=False)
    model = load(None, str(folder))
    assert model.family == "stable_diffusion_3" and model.default_resolution() == 1024
    assert {w.dtype for part in model.parts().values() for w in part.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
