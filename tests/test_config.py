"""Settings: every YAML composes, the model recommends, the command line decides; a sweep survives its failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Settings
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dreamlab.checks import CHOICES, NUMBERS
from dreamlab.commands import Sample
from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import UserError
from dreamlab.schema import Train
from dreamlab.train import train

CONF = Path(conf_dir())
GROUPS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)


def composed(*overrides: str) -> Train:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", list(overrides)))
    assert isinstance(config, Train)
    return config


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_yaml_composes_into_the_schema(path: Path) -> None:
    appended = "+" if path.parent == Path("sweep") else ""  # no default to replace
    config = composed(f"{appended}{path.parent}={path.stem}")
    assert config.lr > 0 and config.steps >= 1 and config.prompts
    assert config.optimizer["_target_"]


def test_the_sample_command_composes() -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("sample", ["run=pocket", "prompt=dog"]))
    assert isinstance(config, Sample) and config.n == 4


def test_each_model_recommends_its_own_and_the_command_line_wins() -> None:
    pocket, sd15 = composed("model=pocket"), composed("model=sd15")
    assert (pocket.lr, pocket.steps, pocket.batch_size, pocket.resolution, pocket.precision) == (
        5e-5, 200, 2, 64, "fp32",
    )  # fmt: skip
    assert (sd15.lr, sd15.steps, sd15.batch_size, sd15.resolution, sd15.precision) == (1e-6, 800, 1, 512, "fp16")
    assert (pocket.sampling.guidance, sd15.prior.guidance) == (5.0, 7.5)
    chosen = composed("model=sd15", "lr=2e-6", "steps=400", "sampling.guidance=3")
    assert (chosen.lr, chosen.steps, chosen.sampling.guidance, chosen.prior.guidance) == (2e-6, 400, 3.0, 7.5)


def test_a_preset_overrules_the_defaults_and_gives_way_to_the_command_line() -> None:
    assert composed("experiment=demo").name == "demo"
    assert composed("experiment=demo", "name=mine").name == "mine"


def test_every_rule_of_the_checks_is_about_a_setting() -> None:
    names = set(setting_names(Train))
    assert set(NUMBERS) | set(CHOICES) <= names
    numbers = {name for name in names if isinstance(OmegaConf.select(OmegaConf.structured(Train), name), float)}
    assert {name for name in numbers if not name.startswith("model.")} <= set(NUMBERS)


def command(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "dreamlab.train", *words], cwd=cwd, env={**os.environ, "PYTHONPATH": root},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_failing_member_of_a_sweep_stops_no_other(tiny: tuple[str, ...], tmp_path: Path) -> None:
    done = command("-m", *tiny, "lr=1e-5,nan,2e-5", "steps=1", "seed=3", "cache_dir=cache", cwd=tmp_path)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("dreamlab: ")]
    assert len(told) == 1 and "lr=nan" in told[0] and "Traceback" not in done.stderr
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("outputs/*/status.json")]
    assert states == ["finished", "finished"]


@pytest.mark.slow
def test_a_member_that_fails_while_training_says_so_in_its_directory(settings: Settings, tmp_path: Path) -> None:
    config = settings("model.source=" + str(tmp_path / "model"), "name=broken")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="names no scheduler"):
        train(config)
    status = json.loads((Path(config.out) / "broken" / "status.json").read_text())
    assert status["state"] == "failed" and "names no scheduler" in status["message"]


def test_help_from_another_folder_lists_choices_and_leaves_nothing(tmp_path: Path) -> None:
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("instance_dir", "prior_weight", "adamw8bit", "sd15", "python -m dreamlab.train model=sd15"):
        assert part in done.stdout
    assert list(tmp_path.iterdir()) == []
