"""A whole working day below a path of other alphabets, spaces, quotes and signs that shells and Hydra know."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Settings, noise_picture

from dreamlab.command_lines import _hydra_value
from dreamlab.commands import Bench, Evaluate, Export, Inspect, Report, Sample, Tokens
from dreamlab.errors import UserError
from dreamlab.evaluate import evaluate
from dreamlab.export import export
from dreamlab.inspect import inspect
from dreamlab.models import BUNDLED
from dreamlab.page import write_page
from dreamlab.places import check_places
from dreamlab.plan import pace
from dreamlab.report import report
from dreamlab.runs import RunDirectory
from dreamlab.sample import sample
from dreamlab.schema import Eval, Model
from dreamlab.train import train

ODD = "Ünï cödé 犬 & co/it's [1], {x}=$HOME #%2"
SMALL = Eval(
    kind="quick", near=1, far=1, class_images=2, unrelated=1, moments=1, steps=2, probes=0, dino="pocket-dino",
    clip="pocket-clip",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir(parents=True)
    return folder


def photos_in(folder: Path, first: int) -> Path:
    folder.mkdir()
    for number in range(first, first + 2):
        noise_picture(number).save(folder / f"фото {number}'s.png")
    (folder / f"фото {first}'s.txt").write_text("a {token} {class_word}, naïve ☃", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_train_sample_evaluate_export_and_report(
    settings: Settings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(BUNDLED["pocket"], place / "модель &"))
    one = {
        "instance_dir": str(photos_in(place / "ma photo", 1)), "class_dir": str(photos_in(place / "klasse", 5)),
        "token": "zwx", "class_word": "dog",
    }  # fmt: skip
    (place / "liste des sujets.json").write_text(json.dumps([one]), encoding="utf-8")
    given = {
        "concepts": place / "liste des sujets.json", "model.source": model, "cache_dir": place / "cache é",
        "out": place / "out é", "name": "my run's 1",
    }  # fmt: skip
    words = [f"{key}={_hydra_value(str(value))}" for key, value in given.items()]
    calls = iter(range(10**6))  # a clock that is put back by a day at every other look
    monkeypatch.setattr(time, "time", lambda: 1.8e9 - 86400.0 * (next(calls) % 2))
    run = train(settings(*words, "instance_dir=demo", "class_word=null", "adapter=lora", "logger=csv"))
    assert run.path == place / "out é" / "my run's 1" and run.status()["state"] == "finished"
    assert run.status()["seconds"] > 0 and all(row["perf/images_per_s"] > 0 for row in run.read_metrics())
    assert run.read_card()["captions"] == {str(place / "ma photo" / "фото 1's.png"): "a zwx dog, naïve ☃"}
    update_s, besides_s = pace(run.path.parent, run.read_config()) or (0, -1)
    assert update_s > 0 and besides_s >= 0

    drawn = sample(Sample(run=str(run.path), prompt="a zwx dog, naïve ☃", n=1, steps=2, device="cpu"))
    assert drawn.is_relative_to(run.path) and (drawn / "0000.png").is_file()
    exported = export(Export(run=str(run.path), format="kohya", out=str(place / "é x.safetensors"), card=True))
    assert exported.is_file() and (place / "é x.md").is_file()
    evaluate(Evaluate(run=str(run.path), device="cpu", eval=SMALL))
    assert run.verdict.is_file()
    assert write_page(RunDirectory(run.path)).read_text(encoding="utf-8").count("модель &amp;") > 0
    shutil.copytree(run.path, run.path.parent / "другой")
    page = report(Report(folder=str(run.path.parent), out=str(place / "page é" / "сравнение.html")))
    assert "другой" in page.read_text(encoding="utf-8")
    inspect(Inspect(instance_dir=one["instance_dir"], class_word="dog", out=str(place / "фото.html")))
    assert "фото 1&#39;s.png" in (place / "фото.html").read_text(encoding="utf-8")


NO_HOME = "~nobody-of-this-name/x"
NOWHERE = {
    "run": Sample(run=NO_HOME), "vae": Export(vae=NO_HOME), "eval.dino": Evaluate(eval=Eval(dino=NO_HOME)),
    "runs": Report(runs=["outputs/a", NO_HOME]), "folder": Report(folder="a\0b"),
    "class_dir": Inspect(class_dir=NO_HOME),
    "model.source": Tokens(model=Model(source=NO_HOME)), "out": Bench(out=NO_HOME),
}  # fmt: skip


@pytest.mark.parametrize("key", NOWHERE)
def test_a_path_that_can_be_none_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}='.*' is no name of a file or folder: .* Give another.$"):
        check_places(NOWHERE[key])


def test_every_command_looks_at_its_paths_first() -> None:
    command = [sys.executable, "-m", "dreamlab.export", f"run='{NO_HOME}'"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("dreamlab: run='~nobody") and "Traceback" not in done.stderr
