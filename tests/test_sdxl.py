"""SDXL: how a picture was cut, text of two encoders, the published file, kohya's names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Settings, are_identical, noise_picture, weights_in
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from published_keys import published_xl
from test_update import prepared
from tiny_models import save_tiny_xl
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreamlab import feed
from dreamlab.commands import Export
from dreamlab.export import export
from dreamlab.kohya import original_layers
from dreamlab.models import Options, load
from dreamlab.models.families import family_in
from dreamlab.photos import Region, crop, micro_conditioning
from dreamlab.resume import Start
from dreamlab.sample import Sampler, draw
from dreamlab.single_file import to_single_file_xl

FULL_UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_xl(tmp_path_factory.mktemp("model") / "xl", layers=10)  # diffusers knows XL by the tenth


@pytest.mark.parametrize(
    ("size", "region", "expected"),
    [
        ((1500, 1000), Region(100, 100), [1000, 1500, 0, 25, 100, 100]),
        ((1500, 1000), Region(100, 100, (0.0, 0.5)), [1000, 1500, 0, 0, 100, 100]),
        ((1500, 1000), Region(100, 100, (0.0, 0.5), flip=True), [1000, 1500, 0, 50, 100, 100]),
        ((50, 100), Region(100, 100, (0.5, 1.0)), [100, 50, 100, 0, 100, 100]),
        ((64, 64), Region(64, 64), [64, 64, 0, 0, 64, 64]),
    ],
)
def test_a_crop_is_told_by_its_pictures_size_its_corner_and_its_own_size(
    size: tuple[int, int], region: Region, expected: list[int]
) -> None:
    assert micro_conditioning(size, region) == expected
    picture = noise_picture(0, size)
    height, width, top, left, *_ = expected
    scale = max(region.width / width, region.height / height)
    whole = crop(picture, Region(round(height * scale), round(width * scale), flip=region.flip))
    assert torch.equal(whole[:, top : top + 100, left : left + 100], crop(picture, region))


def test_batches_tell_it_whether_latents_are_cached_or_not_and_the_network_hears_it(
    settings: Settings, folder: Path
) -> None:
    found = []
    for crops in ("data.crops=2", "data.crops=0"):
        words = ("model=sdxl", f"model.source={folder}", "model.variant=null", "resolution=32", "precision=fp32")
        words = (*words, "data.crop=random", "data.flip=true", crops, "model.gradient_checkpointing=false")
        model, sets, module, _ = prepared(settings(*words))
        batch = next(iter(feed.batches(settings(*words), sets, Start(""), module)))
        assert batch.sizes is not None and (batch.moments is None) == (crops == "data.crops=0")
        assert batch.sizes[0, :2].tolist() == [64, 80] and batch.sizes[1].tolist() == [32, 32, 0, 0, 32, 32]
        assert batch.sizes[0, 3] in range(9) and batch.sizes[0, 2] == 0  # 80 x 64 becomes 40 x 32
        text, noised = module.text(batch.input_ids, 0), module.noised(batch)
        with torch.no_grad():
            ours = module.predict(batch, noised, text)
            theirs = model.parts()["unet"](
                noised.noisy_latents, noised.timesteps, encoder_hidden_states=text["hidden"],
                added_cond_kwargs={"text_embeds": text["pooled"], "time_ids": batch.sizes.float()},
            ).sample  # fmt: skip
            plain = model.predict(noised.noisy_latents, noised.timesteps, text)
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours[0], plain[0]) and torch.allclose(ours[1], plain[1], atol=1e-6)
        found.append(batch.sizes)
    assert torch.equal(found[0][1], found[1][1])


def test_text_is_that_of_the_pipeline(folder: Path) -> None:
    model = load(None, str(folder))
    prompts = ["a dog", "a photo of a cat"]
    with torch.no_grad():
        ours = model.encode_text(model.tokenize(prompts))
        hidden, _, pooled, _ = model.pipeline().encode_prompt(prompts, device="cpu")
    assert torch.equal(ours["hidden"], hidden) and torch.equal(ours["pooled"], pooled)


def test_layers_left_out_are_left_out_of_both_encoders_and_of_pictures(folder: Path) -> None:
    whole, skipping = load(None, str(folder)), load(None, str(folder), options=Options(clip_skip=1))
    ids, pictures = whole.tokenize(["a dog"]), list[Any]()
    with torch.no_grad():
        ours, plain = skipping.encode_text(ids)["hidden"], whole.encode_text(ids)["hidden"]
        theirs = whole.pipeline().encode_prompt(["a dog"], device="cpu", clip_skip=1)[0]
    assert torch.equal(ours, theirs) and not torch.equal(ours[..., :32], plain[..., :32])
    for model in (whole, skipping):
        draw(
            model, ["a dog"], [1], Sampler("ddim", 2, 5.0, "a cat", 32, 32), device=torch.device("cpu"),
            precision="bf16", batch_size=1, on_image=lambda _, image: pictures.append(list(image.getdata())),
        )  # fmt: skip
    assert pictures[0] != pictures[1]


def test_the_vae_stays_in_float32_where_fp16_would_overflow(folder: Path) -> None:
    model: Any = load(None, str(folder))
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for part in (model.vae.encoder.conv_in, model.vae.decoder.conv_in):
            part.weight.mul_(1e6)  # the norms after it take that out again
        mean, _ = model.encode_images(pixels)
        picture = model.vae.decode(mean)[0]
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(model.encode_images(pixels)[0], mean)
            assert torch.equal(model.vae.decode(mean)[0], picture)
            assert not model.vae.encoder(pixels).isfinite().all()
    pictures: list[Any] = []
    draw(
        model, ["a dog"], [1], Sampler("ddim", 1, 1.0, "", 32, 32), device=torch.device("cpu"), precision="fp16",
        batch_size=1, on_image=lambda _, image: pictures.append(image),
    )  # fmt: skip
    assert len(set(pictures[0].getdata())) > 10


def test_the_full_size_architecture_has_exactly_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):  # shapes without the gigabytes
        small = CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
        big = CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
            projection_dim=1280,
        )  # fmt: skip
        parts = {
            "unet": UNet2DConditionModel(**FULL_UNET),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            "text_encoder": CLIPTextModel(small), "text_encoder_2": CLIPTextModelWithProjection(big),
        }  # fmt: skip
    state = to_single_file_xl({name: part.state_dict() for name, part in parts.items()})
    assert {name: tuple(weight.shape) for name, weight in state.items()} == published_xl()
    assert len(state) == 2515
    layers = original_layers(parts["unet"].state_dict())
    attended = {name: told for name, told in layers.items() if name.endswith("attn2.to_k")}
    assert len(attended) == 70  # transformer blocks; kohya's names are of the original layout
    assert attended["mid_block.attentions.0.transformer_blocks.9.attn2.to_k"].startswith("middle_block.1.")
    assert attended["up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_k"].startswith("output_blocks.5.1.")
    assert attended["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"].startswith("input_blocks.4.1.")


def test_there_and_back_is_exact_in_float32(folder: Path, tmp_path: Path) -> None:
    file = export(Export(run=str(folder), out=str(tmp_path / "xl.safetensors"), dtype="fp32"))
    before = weights_in(load(None, str(folder)))
    back = StableDiffusionXLPipeline.from_single_file(str(file), config=str(folder), local_files_only=True)
    named = ("unet", "vae", "text_encoder", "text_encoder_2")
    after = {f"{part}.{key}": w for part in named for key, w in getattr(back, part).state_dict().items()}
    assert are_identical(before, after)
    pickled = export(Export(run=str(file), config=str(folder), format="ckpt", out=str(tmp_path / "xl.ckpt")))
    assert family_in(str(pickled)) == family_in(str(file)) == "sdxl"
