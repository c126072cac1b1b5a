"""The wheel is the whole product: configs and miniature model inside, commands that work from any folder."""

import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
POCKET = ROOT / "dreamlab" / "models" / "pocket"

# Every test here needs the one wheel: with xdist they share a worker and so build it once (--dist loadgroup).
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(path.read_text(encoding="utf-8"))


def files_below(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def test_every_module_and_config_is_inside(unpacked: Path) -> None:
    package = {path for path in files_below(ROOT / "dreamlab") if path.endswith((".py", ".html", ".js"))}
    assert {"templates/page.html", "templates/compare.js"} <= package
    assert package <= files_below(unpacked / "dreamlab")
    assert files_below(unpacked / "dreamlab" / "conf") == files_below(ROOT / "conf")


def test_nothing_else_is_inside(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"dreamlab"}


@pytest.mark.skipif(not POCKET.is_dir(), reason="pocket has not been trained here")
def test_pocket_is_inside_and_small(unpacked: Path) -> None:
    shipped = unpacked / "dreamlab" / "models" / "pocket"
    assert files_below(shipped) == files_below(POCKET)
    weights = list(shipped.rglob("*.safetensors"))
    assert {path.parent.name for path in weights} >= {"unet", "vae", "text_encoder"}
    assert sum(path.stat().st_size for path in weights) <= 24e6


def test_the_core_stays_light(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line}
    assert {"torch", "diffusers", "transformers", "hydra-core"} <= core
    assert not {"torchvision", "torchaudio", "xformers", "scikit-image", "tensorboard"} & core
    assert any(re.match(r"xformers.*extra == ['\"]xformers['\"]", line) for line in requirements)


def test_the_licence_and_the_commands_are_declared(unpacked: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "dreamlab-train = dreamlab.train:main" in entry_points.read_text(encoding="utf-8")
    assert "dreamlab-sample = dreamlab.sample:main" in entry_points.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["train", "sample"])
def test_commands_work_from_an_empty_folder(unpacked: Path, tmp_path: Path, command: str) -> None:
    site = str(unpacked)
    where = run("-c", "import dreamlab; print(dreamlab.__file__)", cwd=tmp_path, PYTHONPATH=site)
    assert Path(where.strip()).is_relative_to(unpacked), "the test must see the wheel, not the checkout"

    assert "seed" in run("-m", f"dreamlab.{command}", "--help", cwd=tmp_path, PYTHONPATH=site)
    job = run("-m", f"dreamlab.{command}", "--cfg", "job", cwd=tmp_path, PYTHONPATH=site)
    assert re.search(r"^seed: \d+$", job, re.MULTILINE)
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
