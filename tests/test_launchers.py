"""Sweeps through Hydra's launchers: the same weights whoever starts the runs, and presets that say what they do."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import Settings, TrainRun, are_identical, start_command, weights_of
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from dreamlab import devices
from dreamlab.config import conf_dir
from dreamlab.errors import UserError, explained
from dreamlab.objectives import are_wanted, objectives
from dreamlab.runs import RunDirectory

GRID = ("lr=1e-4,2e-4", "steps=1,3")  # two trainings of two runs each
ROOT = str(Path(__file__).parent.parent)
PARALLEL = {
    "joblib": ("joblib", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "joblib_gpus": ("joblib", "hydra/launcher=joblib_gpus"),
    "submitit_local": ("submitit", "hydra/launcher=submitit_local"),
    "ray_local": ("ray", "hydra/launcher=ray_local"),
}


def sweep(folder: Path, *words: str, **environment: str) -> tuple[int, dict[str, RunDirectory], str]:
    """Exit code, the runs by name, and the output of a sweep in `folder`."""
    folder.mkdir()
    out, log = folder / "outputs", folder / "log.txt"
    places = (f"out={out}", f"hydra.sweep.dir={folder / 'sweep'}")
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    process = start_command("dreamlab.train", *words, *places, log=log, PYTHONPATH=path, **environment)
    code = process.wait(400)
    runs = {path.name: RunDirectory(path) for path in sorted(out.glob("*")) if (path / "status.json").is_file()}
    return code, runs, log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def one_after_another(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    """What Hydra's own launcher makes of the grid: four runs in one process."""
    code, runs, said = sweep(tmp_path_factory.mktemp("launch") / "basic", "-m", *tiny, "prompts=[]", *GRID)
    assert code == 0 and len(runs) == 4, said
    return runs


@pytest.mark.slow
@pytest.mark.xdist_group("launchers")
def test_one_process_trains_what_lone_runs_do(one_after_another: dict[str, RunDirectory], train_run: TrainRun) -> None:
    for lr, steps in ((1e-4, 1), (2e-4, 3)):
        alone = train_run(f"lr={lr}", f"steps={steps}", "prompts=[]")
        assert are_identical(weights_of(alone), weights_of(one_after_another[alone.path.name]))


@pytest.mark.slow
@pytest.mark.xdist_group("launchers")
@pytest.mark.parametrize(
    "launcher",
    [
        "joblib",
        "ray_local",
        *(pytest.param(one, marks=pytest.mark.thorough) for one in ("joblib_gpus", "submitit_local")),
    ],
)
def test_a_launcher_trains_the_same_weights(
    one_after_another: dict[str, RunDirectory], tiny: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    package, *words = PARALLEL[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    visible = {"CUDA_VISIBLE_DEVICES": "0,1"} if launcher == "joblib_gpus" else {}
    code, runs, said = sweep(tmp_path / launcher, "-m", *words, *tiny, "prompts=[]", *GRID, **visible)
    assert code == 0, said
    assert runs.keys() == one_after_another.keys()
    logs = [path.read_text() for path in (tmp_path / launcher).rglob("*_log.err")]  # submitit's
    assert sum(text.count("training  ") for text in (said, *logs)) == 2, "two trainings, whoever does them"
    for name, run in runs.items():
        assert run.status()["state"] == "finished"
        assert run.evaluations.rows() == one_after_another[name].evaluations.rows()
        assert are_identical(weights_of(run), weights_of(one_after_another[name])), name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.thorough)])
def test_a_failing_member_stops_no_other_process(tiny: tuple[str, ...], tmp_path: Path, launcher: str) -> None:
    package, *words = PARALLEL[launcher]
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    code, runs, said = sweep(tmp_path / "sweep", "-m", *words, *tiny, "prompts=[]", "lr=-1,1e-4,2e-4", "steps=1")
    assert code == 2, said
    assert [run.status()["state"] for run in runs.values()] == ["finished", "finished"]
    logs = [path.read_text() for path in (tmp_path / "sweep").rglob("*_log.err")]  # Slurm's and submitit's
    told = [line for text in (said, *logs) for line in text.splitlines() if line.startswith("dreamlab: ")]
    assert len(told) == 1 and "lr=-1" in told[0]


def test_each_process_keeps_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert devices.visible() == ["4", "6"]
    with ProcessPoolExecutor(1, get_context("spawn")) as one, ProcessPoolExecutor(1, get_context("spawn")) as other:
        claimed = [process.submit(devices.own).result() for process in (one, other, one)]
    assert sorted(claimed[:2]) == ["4", "6"] and claimed[0] == claimed[2]


def test_without_gpus_a_launcher_runs_one_at_a_time_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.register_resolvers()
    told = OmegaConf.create({"n": "${devices.count:}", "share": "${devices.share:}"})
    assert devices.visible() == [] and told.n == 1 and told.share == 0


def composed(*words: str) -> dict[str, object]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", list(words), return_hydra_config=True)
    return {key: OmegaConf.select(config, f"hydra.{key}") for key in ("mode", "sweeper", "launcher", "job")}


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(conf_dir(), "sweep").glob("*.yaml")))
def test_a_sweep_preset_needs_no_flag_and_each_member_composes(settings: Settings, name: str) -> None:
    if name == "optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    hydra = composed(f"+sweep={name}")
    assert hydra["mode"].name == "MULTIRUN" and hydra["sweeper"].params  # type: ignore[attr-defined]
    if name != "optuna":
        for key, values in hydra["sweeper"].params.items():  # type: ignore[attr-defined]
            first, last = values.split(",", 1)[0], "[unet,text_encoder]" if "[" in values else values.rsplit(",", 1)[1]
            settings(f"+sweep={name}", f"{key}={first}")
            settings(f"+sweep={name}", f"{key}={last}")


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(conf_dir(), "hydra", "launcher").glob("*.yaml")))
def test_a_launcher_preset_composes(settings: Settings, name: str) -> None:
    package = {"joblib_gpus": "joblib", "slurm": "submitit", "ray_local": "ray"}[name]
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    settings()
    hydra = composed(f"hydra/launcher={name}")
    assert package in str(hydra["launcher"]._target_)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_command_line_speaks_after_a_preset(tiny: tuple[str, ...], tmp_path: Path) -> None:
    code, runs, said = sweep(tmp_path / "sweep", "+sweep=lr_steps", *tiny, "prompts=[]", "lr=3e-5", "steps=1,2")
    assert code == 0, said
    assert sorted((run.read_config()["lr"], run.read_config()["steps"]) for run in runs.values()) == [
        (3e-5, 1), (3e-5, 2),
    ]  # fmt: skip


def test_a_search_reads_the_last_evaluation(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for update, near, drift in ((0, 0.2, 0.0), (1, 0.4, 0.1), (2, 0.5, 0.2)):
        run.evaluations.append({"update": update, "eval/dino_near": near, "eval/drift_class": drift})
    assert objectives(run) == (0.5, 0.2)


def test_a_search_says_which_measure_is_missing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.evaluations.append({"update": 2, "eval/drift_class": 0.2})
    with pytest.raises(UserError, match=r"no eval/dino_near.*eval\.near=1"):
        objectives(run)


@pytest.mark.slow
def test_a_search_sees_what_a_real_run_measured(train_run: TrainRun) -> None:
    words = ("eval=quick", "eval.far=0", "eval.unrelated=0", "eval.class_images=1", "eval.moments=1", "eval.probes=0")
    run = train_run("steps=1", *words, "eval.steps=2", "prompts=[]")
    fidelity, drift = objectives(run)
    rows = [json.loads(line) for line in run.evaluations.path.read_text().splitlines()]
    assert (fidelity, drift) == (rows[-1]["eval/dino_near"], rows[-1]["eval/drift_class"])
    assert -1 <= fidelity <= 1 and 0 <= drift <= 2


@pytest.mark.slow
def test_a_search_without_evaluation_says_what_to_set(train_run: TrainRun) -> None:
    with pytest.raises(UserError, match="eval=quick"):
        objectives(train_run("steps=1", "prompts=[]"))


def test_a_launcher_that_is_not_installed_is_told_with_what_brings_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), explained():
        raise MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic"])  # as Hydra does then
    assert "pip install 'dreamlab[submitit]'" in capsys.readouterr().err


def test_only_a_search_wants_results() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert not are_wanted(OmegaConf.create({"sweeper": composed("+sweep=token")["sweeper"]}))
    assert are_wanted(OmegaConf.create({"sweeper": composed("+sweep=optuna")["sweeper"]}))


@pytest.mark.slow
def test_a_search_ends_in_a_front_of_settings(tiny: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    measured = ("eval=quick", "eval.far=0", "eval.unrelated=0", "eval.class_images=1", "eval.moments=1")
    cheap = ("eval.probes=0", "eval.steps=2", "prompts=[]", "steps=1,2", "hydra.sweeper.n_trials=2")
    code, runs, said = sweep(tmp_path / "search", "+sweep=optuna", *tiny, *measured, *cheap)
    assert code == 0, said
    told = OmegaConf.load(tmp_path / "search" / "sweep" / "optimization_results.yaml")
    values = [[round(value, 6) for value in solution["values"]] for solution in told["solutions"]]
    found = [[round(value, 6) for value in objectives(run)] for run in runs.values()]
    assert values and all(value in found for value in values)
