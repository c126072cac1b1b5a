"""A sweep of the real command in which one member fails in the middle: the others finish, and each says how it went."""

import shutil
from pathlib import Path

import pytest
from conftest import start_command

from dreamlab.models import BUNDLED
from dreamlab.runs import RunDirectory


def broken_model(folder: Path, file: str) -> Path:
    """A copy of pocket in which one file is cut short."""
    shutil.copytree(BUNDLED["pocket"], folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        pytest.param("unet/diffusion_pytorch_model.safetensors", id="U-Net"),
        pytest.param("text_encoder/model.safetensors", id="text encoder", marks=pytest.mark.thorough),
    ],
)
def test_a_member_that_fails_in_its_directory_stops_no_other(tiny: tuple[str, ...], tmp_path: Path, file: str) -> None:
    out, log = tmp_path / "outputs", tmp_path / "log.txt"
    broken = broken_model(tmp_path / "broken", file)
    words = (*tiny, f"model.source={broken},pocket", "seed=1,2", "steps=1", "prompts=[]", f"out={out}")
    process = start_command("dreamlab.train", "-m", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}", log=log)
    code, said = process.wait(180), log.read_text(encoding="utf-8")
    runs = [RunDirectory(path) for path in out.iterdir()]
    states = sorted(run.status()["state"] for run in runs)
    assert code == 2 and states == ["failed", "failed", "finished", "finished"], said
    assert "Traceback" not in said
    for run in runs:
        status = run.status()
        if status["state"] == "failed":
            assert str(broken) in status["message"] and not run.model.exists()
        else:
            assert status["update"] == 1 and (run.model / "model_index.json").is_file()
