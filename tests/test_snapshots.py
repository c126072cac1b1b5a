"""Snapshots: small, of what learns alone, and a model wherever a model can be named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, weights_in, weights_of
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreamlab import checkpoints
from dreamlab.commands import Export, Sample
from dreamlab.errors import UserError
from dreamlab.export import export
from dreamlab.models import Family, find, load
from dreamlab.runs import RunDirectory
from dreamlab.sample import sample
from dreamlab.snapshots import load_snapshot, write_snapshot
from dreamlab.train import train


@pytest.fixture(scope="module")
def run(settings: Settings) -> RunDirectory:
    return train(settings("steps=3", "snapshot_every=2", "lr=1e-4", "adapter.train=[unet]", "name=snapped"))


@pytest.fixture
def copied(run: RunDirectory, tmp_path: Path) -> Path:
    """A snapshot that a test may break."""
    return shutil.copytree(run.snapshots / "update-000003", tmp_path / "copied")


def test_snapshots_are_taken_at_intervals_and_at_the_end(run: RunDirectory) -> None:
    assert sorted(path.name for path in run.snapshots.iterdir()) == ["update-000002", "update-000003"]
    about = json.loads((run.snapshots / "update-000002" / "snapshot.json").read_text())
    assert about == {
        "update": 2, "instance_prompt": "a photo of a zwx dog", "parts": ["unet"], "dtype": "fp16",
        "base": {"family": "stable_diffusion", "source": "pocket", "revision": None, "variant": None, "vae": None,
                 "config": None},
    }  # fmt: skip


def test_a_snapshot_is_small_and_a_part_of_it_can_be_loaded_alone(run: RunDirectory, model: Family) -> None:
    folder = run.snapshots / "update-000003"
    assert sorted(path.name for path in folder.iterdir()) == ["snapshot.json", "unet.safetensors"]
    with safe_open(folder / "unet.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    unet = model.parts()["unet"]
    assert unet.load_state_dict(load_file(folder / "unet.safetensors"), strict=True)
    numbers = sum(weight.numel() for weight in unet.parameters())
    assert (folder / "unet.safetensors").stat().st_size < 2.1 * numbers


def test_a_snapshot_is_the_runs_weights_in_half_precision_on_its_base(run: RunDirectory, model: Family) -> None:
    snapped, final, base = (
        weights_in(load("any", str(run.snapshots / "update-000003"))),
        weights_of(run),
        weights_in(model),
    )
    assert snapped.keys() == final.keys()
    for name, weight in snapped.items():
        assert torch.equal(weight, final[name].half().float() if name.startswith("unet.") else base[name]), name
    assert any(not torch.equal(weight, base[name]) for name, weight in snapped.items())


def test_only_weights_that_learn_are_kept_and_the_rest_comes_from_the_base(model: Family, tmp_path: Path) -> None:
    name = "conv_out.bias"
    write_snapshot(tmp_path / "s", {f"unet.{name}": torch.full((8,), 0.1)}, {"update": 1, "base": {
        "family": "stable_diffusion", "source": "pocket"}})  # fmt: skip
    after, before = weights_in(load_snapshot(tmp_path / "s")), weights_in(model)
    assert {key for key in after if not torch.equal(after[key], before[key])} == {f"unet.{name}"}
    assert after[f"unet.{name}"].dtype == torch.float32


def test_names_are_those_of_diffusers_files(train_run: TrainRun) -> None:
    run = train_run("steps=1", "snapshot_every=1")
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        saved, snapped = load_file(run.model / part / f"{file}.safetensors"), f"update-000001/{part}.safetensors"
        assert load_file(run.snapshots / snapped).keys() == saved.keys()


def test_frozen_weights_of_a_trained_part_are_left_out(model: Family) -> None:
    module = torch.nn.Module()
    module.trained = torch.nn.ModuleDict({"unet": model.parts()["unet"]})
    model.parts()["unet"].get_submodule("conv_out").requires_grad_(True)
    assert checkpoints.learning(module) == {"unet.conv_out.weight", "unet.conv_out.bias"}
    assert checkpoints.learnt(module).keys() > checkpoints.learning(module)


def test_snapshots_change_nothing_and_the_newest_are_kept(train_run: TrainRun) -> None:
    plain = train_run("steps=4", "name=plain")
    snapped = train_run("steps=4", "name=snapped", "snapshot_every=1", "keep_snapshots=2")
    assert sorted(path.name for path in snapped.snapshots.iterdir()) == ["update-000003", "update-000004"]
    losses = [[row["train/loss"] for row in one.read_metrics()] for one in (plain, snapped)]
    assert losses[0] == losses[1] and not plain.snapshots.exists()


def drawn(given: str, **settings: object) -> tuple[Path, np.ndarray]:
    """The one picture that `python -m dreamlab.sample run=<given>` makes, and its folder."""
    folder = sample(Sample(run=given, prompt="a dog", n=1, steps=3, device="cpu", **settings))  # type: ignore[arg-type]
    return folder, np.asarray(Image.open(folder / "0000.png")).astype(int)


def test_a_snapshot_is_drawn_with_into_its_run(run: RunDirectory, tmp_path: Path) -> None:
    folder, snapped = drawn(str(run.snapshots / "update-000003"))
    assert folder == run.path / "samples" / "a-dog-update-000003"
    final = drawn(str(run.path), out=str(tmp_path / "final"))[1]
    base = drawn("pocket", out=str(tmp_path / "base"), guidance=5)[1]
    assert np.abs(snapped - final).max() <= 12 < np.abs(snapped - base).max()


def test_a_snapshot_is_exported_and_trained_on(run: RunDirectory, train_run: TrainRun, tmp_path: Path) -> None:
    source = run.snapshots / "update-000002"
    out = export(Export(run=str(source), out=str(tmp_path / "folder"), format="diffusers", dtype="fp32"))
    exported, snapped = weights_in(load("stable_diffusion", str(out))), weights_in(load("any", str(source)))
    assert all(torch.equal(weight, exported[name]) for name, weight in snapped.items())
    again = train_run(f"model.source={source}", "steps=1", "snapshot_every=1")
    assert json.loads((again.snapshots / "update-000001" / "snapshot.json").read_text())["base"]["source"] == str(
        source
    )
    assert find(str(again.snapshots / "update-000001"))


def test_an_unfinished_run_says_which_snapshots_it_has(run: RunDirectory, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(run.path, tmp_path / "unfinished"))
    shutil.rmtree(unfinished / "model")
    with pytest.raises(
        UserError, match=r"Resume it by its command, or name a snapshot.*update-000003 \(or update-000002"
    ):
        sample(Sample(run=str(unfinished), prompt="a dog"))
    shutil.rmtree(unfinished / "snapshots")
    with pytest.raises(UserError, match=r"has not finished\. Resume it by its command\.$"):
        sample(Sample(run=str(unfinished), prompt="a dog"))


def test_what_does_not_fit_its_base_is_refused(copied: Path) -> None:
    weights = load_file(copied / "unet.safetensors")
    save_file({**weights, "conv_inn.weight": torch.zeros(2)}, copied / "unet.safetensors")
    with pytest.raises(UserError, match=r"no 'conv_inn.weight'.*\(1 of \d+ weights\)"):
        load_snapshot(copied)
    save_file({**weights, "conv_in.bias": torch.zeros(2)}, copied / "unet.safetensors")
    with pytest.raises(UserError, match="does not fit its base 'pocket'"):
        load_snapshot(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": {"family": "stable_diffusion", "source": "./gone"}}, r"base model.*no model at './gone'"),
        ({"base": {"family": "stable_diffusion"}}, "no readable snapshot"),
        ({"base": "pocket"}, "no readable snapshot"),
        ({"parts": ["unet", "text_encoder"]}, "text_encoder.safetensors is missing"),
    ],
)
def test_a_snapshot_that_says_something_else_is_refused(copied: Path, change: dict, said: str) -> None:
    about = json.loads((copied / "snapshot.json").read_text())
    (copied / "snapshot.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match=said):
        load_snapshot(copied)


def test_broken_files_are_refused(copied: Path) -> None:
    whole = (copied / "unet.safetensors").read_bytes()
    (copied / "unet.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"unet.safetensors cannot be read"):
        load_snapshot(copied)
    (copied / "snapshot.json").write_text("{")
    with pytest.raises(UserError, match="no readable snapshot"):
        find(str(copied))
