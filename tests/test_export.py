"""One file for A1111 and ComfyUI: exactly the published keys, and back again without a bit lost."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TrainRun, are_identical, weights_in
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from published_keys import published
from safetensors import safe_open
from tiny_models import save_tiny, scheduler
from transformers import CLIPTextConfig, CLIPTextModel

from dreamlab.commands import Export
from dreamlab.errors import UserError
from dreamlab.export import export
from dreamlab.models import BUNDLED, load
from dreamlab.single_file import noise_schedule, to_single_file


@pytest.fixture(scope="module", params=[1, 2], ids=["sd1", "sd2"])
def folder_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("model") / f"sd{request.param}")


def exported(source: Path, out: Path, **settings: object) -> Path:
    return export(Export(run=str(source), out=str(out), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [1, 2])
def test_the_full_size_architecture_has_exactly_the_published_keys_and_shapes(version: int) -> None:
    is_2 = version == 2
    with torch.device("meta"):  # shapes without the gigabytes
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024 if is_2 else 768, use_linear_projection=is_2,
            attention_head_dim=[5, 10, 20, 20] if is_2 else 8,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextModel(CLIPTextConfig(
            hidden_size=1024 if is_2 else 768, intermediate_size=4096 if is_2 else 3072,
            num_hidden_layers=23 if is_2 else 12, num_attention_heads=16 if is_2 else 12,
        ))  # fmt: skip
    state = to_single_file(
        unet.state_dict(), vae.state_dict(), text.state_dict(), scheduler(version).alphas_cumprod,
        open_clip=is_2,
    )  # fmt: skip
    assert {name: tuple(weight.shape) for name, weight in state.items()} == published(version)
    assert len(state) == (1242 if is_2 else 1145)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_there_and_back_is_exact_in_float32(folder_of: Path, tmp_path: Path, kind: str) -> None:
    file = exported(folder_of, tmp_path / f"model.{kind}", format=kind, dtype="fp32")
    before = load("stable_diffusion", str(folder_of))
    back = StableDiffusionPipeline.from_single_file(str(file), config=str(folder_of), local_files_only=True)
    parts = {"unet": back.unet, "vae": back.vae, "text_encoder": back.text_encoder}
    after = {f"{part}.{key}": w for part, network in parts.items() for key, w in network.state_dict().items()}
    assert are_identical(weights_in(before), after)
    assert are_identical(weights_in(before), weights_in(load("stable_diffusion", str(file), config=str(folder_of))))


def test_half_precision_halves_floats_and_leaves_integers(folder_of: Path, tmp_path: Path) -> None:
    file = exported(folder_of, tmp_path / "half.safetensors")
    with safe_open(file, "pt") as weights:
        dtypes = {name: weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    integers = {name for name, dtype in dtypes.items() if not dtype.is_floating_point}
    assert integers <= {"cond_stage_model.transformer.text_model.embeddings.position_ids", "model_ema.num_updates"}
    assert {dtype for name, dtype in dtypes.items() if name not in integers} == {torch.float16}


def test_a_ckpt_opens_without_unpickling_objects(folder_of: Path, tmp_path: Path) -> None:
    file = exported(folder_of, tmp_path / "model.ckpt", format="ckpt")
    assert "model.diffusion_model.out.2.bias" in torch.load(file, weights_only=True)["state_dict"]


def test_the_noise_schedule_is_diffusers() -> None:
    theirs = DDPMScheduler.from_config(scheduler(1).config)
    ours = noise_schedule(theirs.alphas_cumprod)
    torch.testing.assert_close(ours["betas"], theirs.betas, atol=1e-7, rtol=1e-4)
    for t in (1, 500, 999):
        variance = theirs._get_variance(t, variance_type="fixed_small")
        torch.testing.assert_close(ours["posterior_variance"][t], variance, atol=1e-7, rtol=1e-3)
    # x_0 and x_t back to the mean of x_{t-1} (Ho et al. 2020, eq. 7): both coefficients of one if nothing is noised
    assert ours["posterior_mean_coef1"][0] == pytest.approx(1) and ours["posterior_mean_coef2"][0] == 0


@pytest.mark.slow
def test_a_run_carries_its_recipe_into_the_file(train_run: TrainRun, folder_of: Path, tmp_path: Path) -> None:
    run = train_run("lr=2e-5", f"model.source={folder_of}")
    file = exported(run.path, tmp_path / "dog.safetensors", dtype="fp32")
    with safe_open(file, "pt") as weights:
        about = weights.metadata()
    assert about["dreamlab.token"] == "zwx" and about["dreamlab.class_word"] == "dog"
    assert about["dreamlab.base_model"] == folder_of.name and "torch" in json.loads(about["dreamlab.versions"])
    assert json.loads(about["dreamlab.recipe"])["lr"] == 2e-5
    back = weights_in(load("stable_diffusion", str(file), config=str(folder_of)))
    assert are_identical(back, weights_in(load("stable_diffusion", str(run.model))))
    assert not are_identical(back, weights_in(load("stable_diffusion", str(folder_of))))


def test_pocket_has_no_one_file_form_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="format=diffusers"):
        exported(BUNDLED["pocket"], tmp_path / "pocket.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_half_precision_is_a_plain_pipeline(folder_of: Path, tmp_path: Path) -> None:
    folder = exported(folder_of, tmp_path / "folder", format="diffusers")
    assert StableDiffusionPipeline.from_pretrained(folder).unet.config.sample_size == 8
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        assert weights.get_slice("conv_in.weight").get_dtype() == "F16"


class Bomb:
    """What a hostile pickle would do on opening."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


def test_hostile_broken_and_foreign_files_are_refused_in_a_sentence(
    folder_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(4), "x": Bomb()}}, "bomb.ckpt")
    Path("broken.safetensors").write_bytes(b"no weights")
    torch.save({"state_dict": {"some.weight": torch.zeros(4)}}, "foreign.ckpt")
    for name in ("bomb.ckpt", "broken.safetensors", "foreign.ckpt"):
        with pytest.raises(UserError, match=f"Could not load the model file '{name}'"):
            load("stable_diffusion", name, config=str(folder_of))
    assert not Path("exploded").exists()


def test_a_file_in_the_way_and_an_unknown_format_are_refused(folder_of: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("precious")
    with pytest.raises(UserError, match=r"exists already.*overwrite=true"):
        exported(folder_of, tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_text() == "precious"
    with pytest.raises(UserError, match="Did you mean 'safetensors'"):
        exported(folder_of, tmp_path / "x", format="safetensor")
