"""Encoders on tiny random checkpoints: features are those of transformers, whatever the batch and the dtype stored."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_picture
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from dreamlab import encoders
from dreamlab.encoders import KINDS, NAMES, load
from dreamlab.errors import UserError
from dreamlab.metrics import cosine
from dreamlab.models import BUNDLED
from dreamlab.perceptual import lpips_distances
from dreamlab.preprocessing import read_preprocessing

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SETTINGS = {
    "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32}, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
}  # fmt: skip
IMAGES = [noise_picture(seed, size) for seed, size in enumerate([(80, 64), (64, 90), (32, 32), (200, 50), (33, 47)])]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**SHAPE, image_size=32, patch_size=8), add_pooling_layer=False)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["pocket"], subfolder="tokenizer")
    text = {
        **SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**SHAPE, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


def pixels(image: Image.Image) -> torch.Tensor:
    """What SETTINGS say, written out for pictures of 32 px."""
    return ((torch.from_numpy(np.array(image)) / 255.0 - 0.5) / 0.25).permute(2, 0, 1)[None]


def test_images_are_those_of_transformers_at_unit_length(vit: Path, clip: Path) -> None:
    plain = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    both = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        wanted = plain(pixel_values=pixels(IMAGES[2])).last_hidden_state[:, 0]
        projected = both.visual_projection(both.vision_model(pixel_values=pixels(IMAGES[2])).pooler_output)
    for folder, direct in ((vit, wanted), (clip, projected)):
        found = load(str(folder)).images([IMAGES[2]])
        torch.testing.assert_close(found, direct / direct.norm(), atol=1e-5, rtol=0)
        assert found.dtype == torch.float32 and found.norm().item() == pytest.approx(1, abs=1e-5)


def test_texts_are_those_of_transformers(clip: Path) -> None:
    prompts = ["a photo of a dog", "a sepia photo of an orange on a white background", ""]
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    with torch.no_grad():
        direct = [model.text_model(**tokenizer(p, return_tensors="pt")).pooler_output for p in prompts]
        direct = [model.text_projection(one)[0] for one in direct]
    found = load(str(clip)).texts(prompts)
    torch.testing.assert_close(found, torch.stack([one / one.norm() for one in direct]), atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_and_not_refused(clip: Path) -> None:
    assert load(str(clip)).texts(["a photo of a dog " * 30]).shape == (1, 24)


def test_features_do_not_depend_on_the_batch(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(str(clip))
    images, texts = encoder.images(IMAGES), encoder.texts(["a dog", "a cat", "a bus"])
    assert images.shape == (5, 24) and texts.shape == (3, 24)
    monkeypatch.setattr(encoders, "BATCH", 2)
    torch.testing.assert_close(encoder.images(IMAGES), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.texts(["a dog", "a cat", "a bus"]), texts, atol=1e-5, rtol=0)


def test_preprocessing_is_what_transformers_does(vit: Path) -> None:
    pil = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = pil.CLIPImageProcessorPil(**{**SETTINGS, "do_rescale": True, "rescale_factor": 1 / 255})
    ours = read_preprocessing(SETTINGS, 32, (0.0,) * 3, (1.0,) * 3)
    for image in IMAGES:
        theirs = processor(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours(image), theirs, atol=1e-5, rtol=0)


def test_a_bare_size_is_a_square_for_dino_and_a_shortest_side_for_clip() -> None:
    dino = read_preprocessing({"do_resize": True, "size": 224, "resample": 2}, 224, (0.5,) * 3, (0.5,) * 3)
    assert (dino.resize_px, dino.crop_px, dino.resample) == ((224, 224), None, 2)
    clip = read_preprocessing({"do_center_crop": True, "size": 224, "crop_size": 224}, 224, (0.5,) * 3, (0.5,) * 3)
    assert (clip.resize_px, clip.crop_px) == (224, (224, 224))
    assert dino(IMAGES[3]).shape == clip(IMAGES[3]).shape == (3, 224, 224)


def test_without_a_preprocessor_config_the_default_is_taken_and_told(vit: Path, tmp_path: Path) -> None:
    ViTModel.from_pretrained(vit, add_pooling_layer=False).save_pretrained(tmp_path)
    recipe = load(str(tmp_path)).recipe()["preprocessing"]
    assert recipe["source"] == "dreamlab's default" and recipe["crop_px"] == (32, 32)
    assert recipe["mean"] == KINDS["vit"].mean


def test_half_precision_files_are_computed_in_float32(vit: Path, tmp_path: Path) -> None:
    ViTModel.from_pretrained(vit, add_pooling_layer=False).half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    half = load(str(tmp_path))
    assert {weight.dtype for weight in half.model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    torch.testing.assert_close(half.images(IMAGES), load(str(vit)).images(IMAGES), atol=2e-3, rtol=0)


def test_the_recipe_is_plain_and_names_the_weights(vit: Path, clip: Path) -> None:
    recipe = load(str(vit)).recipe()
    assert json.loads(json.dumps(recipe))["encoder"] == str(vit)
    assert len(recipe["sha256"]) == 64 and recipe["sha256"] != load(str(clip)).recipe()["sha256"]
    assert recipe["preprocessing"]["source"] == "preprocessor_config.json"


def test_dino_reads_no_text(vit: Path) -> None:
    with pytest.raises(UserError, match="reads no text"):
        load(str(vit)).texts(["a dog"])
    with pytest.raises(UserError, match="nothing to encode"):
        load(str(vit)).images([])


def test_foreign_folders_are_refused_in_a_sentence(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="clip_text_model"):
        load(str(BUNDLED["pocket"] / "text_encoder"))
    with pytest.raises(UserError, match=r"There is no encoder at .*pocket-dimo.*Did you mean 'pocket-dino'"):
        load("pocket-dimo")
    with pytest.raises(UserError, match="There is no encoder"):
        load("nobody/nothing")  # the tests are offline
    (tmp_path / "config.json").write_text((vit / "config.json").read_text())
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable"):
        load(str(tmp_path))


def test_a_checkpoint_with_missing_weights_is_refused(vit: Path, tmp_path: Path) -> None:
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    weights = {key: value for key, value in model.state_dict().items() if "layernorm.weight" not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"lacks 1 weights, such as 'layernorm\.weight'"):
        load(str(tmp_path))


def test_pocket_has_encoders_of_its_own_that_are_small() -> None:
    files = [path for path in encoders.POCKET.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    dino, clip = load("pocket-dino"), load("pocket-clip")
    features = dino.images(IMAGES)
    assert features.shape == (5, 160) and cosine(features, features).diagonal().min() > 0.999
    assert dino.recipe()["weights"] == "pocket-dino"
    gray, colourful = IMAGES[0].convert("L").convert("RGB"), IMAGES[0]
    words = clip.texts(["a black and white photo of a dog", "a photo of a dog"])
    scores = cosine(clip.images([gray, colourful]), words)
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]


def test_every_short_name_is_a_hub_id_or_a_folder_that_is_there() -> None:
    for place in NAMES.values():
        assert place.count("/") == 1 or (Path(place) / "config.json").is_file()


def test_without_lpips_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"dreamlab\[lpips\]"):
        lpips_distances(IMAGES, torch.device("cpu"))


def test_lpips_is_asked_for_every_pair_in_its_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's place taken by mean absolute difference: what matters here is who is compared with whom."""

    class Difference(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert one.min() >= -1 and one.max() <= 1
            return (one - other).abs().mean((1, 2, 3), keepdim=True)

    stand_in = types.SimpleNamespace(LPIPS=lambda net, verbose: Difference())
    monkeypatch.setitem(sys.modules, "lpips", stand_in)
    levels = [Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 51, 255)]
    apart = lpips_distances(levels, torch.device("cpu"))
    torch.testing.assert_close(apart, torch.tensor([[0, 0.4, 2.0], [0.4, 0, 1.6], [2.0, 1.6, 0]]))
    with pytest.raises(UserError, match="one size"):
        lpips_distances(IMAGES, torch.device("cpu"))
