"""Every family with every adapter: trained, stopped and gone on with, drawn, measured, exported, read by diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, are_identical, weights_in
from diffusers import DiffusionPipeline
from PIL import Image
from test_captured import fitted
from tiny_models import save_tiny, save_tiny_3, save_tiny_flux, save_tiny_xl

from dreamlab.checks import check
from dreamlab.commands import Export, Sample
from dreamlab.errors import UserError
from dreamlab.export import export
from dreamlab.models import load
from dreamlab.models.families import FAMILIES
from dreamlab.runs import RunDirectory
from dreamlab.sample import make_scheduler, sample

ROWS = {  # family -> what makes a tiny folder of it, its file in conf/model, what is trained of it
    "stable_diffusion": (lambda folder: save_tiny(2, folder), "sd21", "unet,text_encoder"),
    "sdxl": (save_tiny_xl, "sdxl", "unet,text_encoder,text_encoder_2"),
    "stable_diffusion_3": (save_tiny_3, "sd35", "transformer"),
    "flux": (save_tiny_flux, "flux", "transformer"),
}
MEASURED = ("eval=quick", "eval.moments=1", "eval.far=1", "eval.class_images=1", "eval.unrelated=1", "eval.steps=2",
            "eval.probes=1", "model.dino=pocket-dino", "model.clip=pocket-clip")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("model") / name) for name, (make, *_) in ROWS.items()}


def words_for(family: str, folder: Path, adapter: str) -> tuple[str, ...]:
    _, model, parts = ROWS[family]
    return (
        f"model={model}", f"model.source={folder}", "model.variant=null", f"adapter={adapter}", "precision=fp32",
        f"adapter.train=[{parts}]", "lr=1e-2" if adapter != "full" else "lr=1e-4", "resolution=32",
        "model.gradient_checkpointing=false", "num_prior_images=2", "steps=3",
    )  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_no_family_is_left_out() -> None:
    assert ROWS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("family", "adapter"),
    [("stable_diffusion", "lora")]  # the other adapters with it: test_lora.py, test_families.py
    + [(family, adapter) for family in [*ROWS][1:] for adapter in ("full", "lora", "dora", "lokr")],
)
def test_a_family_with_an_adapter_goes_the_whole_way(
    train_run: TrainRun, folders: dict[str, Path], tmp_path: Path, family: str, adapter: str
) -> None:
    words = words_for(family, folders[family], adapter)
    measured = MEASURED if adapter == "lora" else ()
    run = train_run(*words, "name=at_once", "save_every=2", "keep_states=2", *measured)
    assert [state.name for state in run.states()] == ["update-000003.ckpt", "update-000002.ckpt"]
    longer = train_run(*words, "name=longer", f"resume={run.states()[1]}", "prompts=[]")
    assert [row["update"] for row in longer.read_metrics()] == [3]
    before, after = (weights_in(load(family, source)) for source in (str(folders[family]), str(run.model)))
    assert are_identical(after, weights_in(load(None, str(longer.model)))), "going on is exact"
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(ROWS[family][2].split(","))

    size = {"height": 32, "width": 32}
    drawn = sample(Sample(run=str(run.path), prompt="a photo of a zwx dog", n=1, steps=2, out=str(tmp_path), **size))
    theirs = run.samples / "update-000003" / "0000.png"
    assert np.abs(pixels(drawn / "0000.png") - pixels(theirs)).max() <= 1
    assert np.abs(pixels(theirs) - pixels(run.samples / "update-000000" / "0000.png")).max() > 1
    if adapter == "lora":
        assert {"eval/dino", "eval/clip_t"} <= run.evaluations.rows()[-1].keys()
    exported(run, folders[family], tmp_path, family, adapter)


def exported(run: RunDirectory, base: Path, out: Path, family: str, adapter: str) -> None:
    """One file of the whole model, or a sentence where there is none; of an adapter, the file that diffusers reads."""
    order = Export(run=str(run.path), dtype="fp32", out=str(out / "model.safetensors"), config=None)
    if not FAMILIES[family].has_single_file:
        with pytest.raises(UserError, match="format=diffusers"):
            export(order)
    elif adapter == "full":
        back = load(None, str(export(order)), config=str(base))
        assert back.family == family and are_identical(weights_in(back), weights_in(load(None, str(run.model))))
    if adapter not in ("lora", "dora"):
        return
    files = [run.model]
    if family == "sdxl" and adapter == "lora":  # diffusers knows kohya's names
        files.append(export(Export(run=str(run.path), dtype="fp32", format="kohya", out=str(out / "k.safetensors"))))
    for file in files:
        picture = drawn_by_diffusers(base, file, family, run.read_config()["sampling"]["guidance"])
        theirs = pixels(run.samples / "update-000003" / "0000.png")
        assert np.abs(picture - theirs).max() <= 1


def drawn_by_diffusers(base: Path, adapter: Path, family: str, guidance: float) -> np.ndarray:
    """The run's sample as its base model's own pipeline draws it with the adapter's file."""
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler(FAMILIES[family].samplers[0], pipe.scheduler.config)
    pipe.load_lora_weights(adapter)
    picture = pipe(
        "a photo of a zwx dog", num_inference_steps=2, guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(52362)], height=32, width=32,
    ).images[0]  # fmt: skip
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("sdxl", "adapter.train=[unet]"),
        ("sdxl", "batch_size=2"),
        ("stable_diffusion_3", "steps=3"),
        ("flux", "steps=3"),
    ],
)
def test_replayed_updates_have_a_buffer_for_all_that_a_network_is_told(
    settings: Settings, folders: dict[str, Path], tmp_path: Path, family: str, more: str
) -> None:
    config = settings(*words_for(family, folders[family], "lora"), more)
    plain, ours = fitted(config, tmp_path / "plain", False), fitted(config, tmp_path / "ours", True)
    for row, other in zip(ours[0].read_metrics(), plain[0].read_metrics(), strict=True):
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
        assert row["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)


def test_settings_of_another_kind_of_model_are_refused_before_it_is_loaded(
    settings: Settings, folders: dict[str, Path]
) -> None:
    source = f"model.source={folders['stable_diffusion_3']}"
    flow = ("model=sd35", source, "resolution=64")
    flux = ("model=flux", f"model.source={folders['flux']}", "resolution=64")
    for words, told in {
        (*flow, "objective.min_snr_gamma=5"): "is a flow",
        (*flow, "objective.zero_terminal_snr=true"): "noise alone already",
        (*flow, "sampling.sampler=ddim"): r"sampling\.sampler=ddim can't draw.*flow_euler",
        (*flow, "eval.sampler=dpm++"): r"eval\.sampler=dpm\+\+ can't draw",
        (*flow, "resolution=40"): "multiples of 16",
        (*flow, "adapter.train=[unet]"): "no trainable part.*transformer",
        (*flow, "model.without=[vae]"): "needs it",
        (source,): "family stable_diffusion_3, not stable_diffusion",
        ("model.padding=longest", "model=sdxl", f"model.source={folders['sdxl']}", "resolution=64"): "several",
        ("sampling.sampler=flow_euler",): r"sampling\.sampler=flow_euler can't draw",
        (*flux, "sampling.negative_prompt=blurry"): r"sampling\.negative_prompt='blurry'.*no negative prompt",
        (*flux, "adapter=textual_inversion"): "read no new words",
    }.items():
        with pytest.raises(UserError, match=told):
            check(settings(*words))
    check(settings(*flow, "objective.timesteps=uniform"))
