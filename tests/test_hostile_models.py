"""A model or a config from a stranger: no code of theirs runs, and what is odd is a sentence."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamlab.config import build
from dreamlab.errors import UserError
from dreamlab.models import BUNDLED, load
from dreamlab.resume import _newest_readable
from dreamlab.snapshots import load_snapshot

CODE = "from pathlib import Path\nPath('exploded').touch()\n"


class Bomb:
    """What a hostile pickle would do on opening."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole model, and the working directory beside it in which a bomb would leave its mark."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(BUNDLED["pocket"], tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def give_code(folder: Path) -> None:
    """Everything by which libraries can be told to import a model's own files."""
    for part in (".", "unet", "text_encoder", "tokenizer", "scheduler"):
        for name in ("pipeline.py", "evil.py", "my_unet.py"):
            (folder / part / name).write_text(CODE)
    change(
        folder / "model_index.json", _class_name=["pipeline", "Evil"], custom_pipeline="pipeline.py",
        unet=["my_unet", "Evil"], trust_remote_code=True,
    )  # fmt: skip
    for file in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"):
        names = {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}
        change(folder / file, auto_map=names, trust_remote_code=True)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    give_code(folder)
    assert load("stable_diffusion", str(folder)).schedule.prediction_type == "v_prediction"
    assert not Path("exploded").exists()


def pipeline_for_scheduler(folder: Path) -> None:
    give_code(folder)
    change(folder / "model_index.json", scheduler=["diffusers", "DiffusionPipeline"])
    shutil.copy(folder / "model_index.json", folder / "scheduler")


def pickled(folder: Path, part: str, name: str, save: Callable[[Any, Path], None]) -> None:
    next((folder / part).glob("*.safetensors")).unlink()
    save({"conv_in.weight": torch.zeros(3), "bomb": Bomb()}, folder / part / name)


def write_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipeline for a scheduler": (pipeline_for_scheduler, "names no scheduler"),
    "a module": (lambda f: change(f / "model_index.json", scheduler=["diffusers", "utils"]), "names no scheduler"),
    "a function": (lambda f: change(f / "model_index.json", scheduler=["os", "system"]), "names no scheduler"),
    "a number": (lambda f: change(f / "model_index.json", scheduler=3), "Could not load the model"),
    "a list": (lambda f: (f / "model_index.json").write_text("[]"), "names no scheduler"),
    "no JSON": (lambda f: (f / "model_index.json").write_text("{"), "not a valid JSON file"),
    "no steps": (
        lambda f: change(f / "scheduler" / "scheduler_config.json", num_train_timesteps="x"), "Could not load",
    ),
    "a torch pickle": (lambda f: pickled(f, "unet", "diffusion_pytorch_model.bin", torch.save), "Could not load unet"),
    "a plain pickle": (lambda f: pickled(f, "unet", "diffusion_pytorch_model.bin", write_pickle), "Could not load"),
    "a text encoder's": (lambda f: pickled(f, "text_encoder", "pytorch_model.bin", torch.save), "Weights only load"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_model_is_a_sentence(folder: Path, name: str) -> None:
    make, said = ODD[name]
    make(folder)
    with pytest.raises(UserError, match=said) as refused:
        load("stable_diffusion", str(folder))
    assert "\n" not in str(refused.value) and not Path("exploded").exists()


def test_a_model_that_no_hub_gives_is_a_sentence() -> None:
    with pytest.raises(UserError, match="Could not load the model 'nobody/nothing'"):
        load("stable_diffusion", "nobody/nothing")


def test_a_bomb_in_a_resume_state_is_refused(folder: Path) -> None:
    torch.save({"dreamlab": {"update": 1, "settings": Bomb()}}, "state.ckpt")
    write_pickle({"dreamlab": Bomb()}, Path("plain.ckpt"))
    for name in ("state.ckpt", "plain.ckpt"):
        with pytest.raises(UserError, match=f"{name} is no readable resume state"):
            _newest_readable([Path(name)])
    assert not Path("exploded").exists()


def test_a_snapshot_whose_base_is_itself_is_a_sentence(folder: Path) -> None:
    names = ("one", "other")
    for own, base in zip(names, reversed(names), strict=True):
        Path(own).mkdir()
        about = {"base": {"family": "stable_diffusion", "source": str(Path(base).absolute())}, "parts": [], "update": 1}
        Path(own, "snapshot.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is in the end itself"):
        load("stable_diffusion", "one")


def test_a_snapshot_reads_nothing_outside_its_folder(folder: Path) -> None:
    snapshot = folder.parent / "snapshot"
    snapshot.mkdir()
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder.parent / "unet.safetensors")
    about = {"base": {"family": "stable_diffusion", "source": "pocket"}, "parts": ["../unet"], "update": 1}
    (snapshot / "snapshot.json").write_text(json.dumps(about))
    with pytest.raises(UserError):
        load_snapshot(snapshot)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "torch.optim", "torch.optim.",
        "torch.optim.os.system", "torch.optim.optimizer.functools", "torch.optim.optimizer.warnings.warn",
        "torch.optim.adam.cast", "torch.optim.adam", "pytorch_lightning.loggers.wandb.os",
        "torch.optimizer.X", "dreamlab.config.build", "torch.optim..Adam", " torch.optim.Adam", "", None, 3, ["os"],
    ],
)  # fmt: skip
def test_only_classes_of_the_allow_list_are_built(target: Any) -> None:
    with pytest.raises(UserError):
        build({"_target_": target, "_args_": ["touch exploded"]})
    assert not Path("exploded").exists()
