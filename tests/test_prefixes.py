"""Runs that are one training: each as it would be alone, bit for bit, whatever interrupts them or comes later."""

from pathlib import Path

import pytest
from conftest import Settings, are_identical, weights_of
from PIL import Image

from dreamlab.checks import check
from dreamlab.prefixes import training_key
from dreamlab.runs import RunDirectory
from dreamlab.schema import Train
from dreamlab.train import train, train_together

MEASURED = (
    "eval=quick", "eval.far=1", "eval.unrelated=1", "eval.class_images=1", "eval.steps=2", "eval.probes=2",
    "sample_every=2", "snapshot_every=2",
)  # fmt: skip
STEPS = (2, 4, 6)


def line(settings: Settings, out: Path, *words: str, steps: tuple[int, ...] = STEPS) -> list[Train]:
    """The settings of runs that differ in `steps` alone, in one folder."""
    return [settings(f"steps={n}", f"out={out}", *words) for n in steps]


def told(run: RunDirectory) -> dict[str, object]:
    """What a run says of itself, without what depends on the clock."""
    rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in run.read_metrics()]
    shown = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*.png"))
    pixels = {name: Image.open(run.path / name).convert("RGB").tobytes() for name in shown if "grid" not in name}
    kept = sorted(path.relative_to(run.path).as_posix() for folder in ("snapshots", "resume")
                  for path in (run.path / folder).rglob("*"))  # fmt: skip
    status = {key: run.status()[key] for key in ("state", "update", "signature")}
    verdict = run.verdict.read_text() if run.verdict.is_file() else ""
    return {"metrics": rows, "evaluations": run.evaluations.rows(), "probes": run.probes.rows(), "pixels": pixels,
            "kept": kept, "status": status, "verdict": verdict, "settings": run.read_config()["steps"]}  # fmt: skip


@pytest.fixture(scope="module")
def alone(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    return [train(config) for config in line(settings, tmp_path_factory.mktemp("alone"), *MEASURED)]


@pytest.mark.slow
def test_each_run_of_a_training_is_as_it_would_be_alone(
    settings: Settings, alone: list[RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = train_together(line(settings, tmp_path, *MEASURED))
    assert capsys.readouterr().err.count("training  ") == 1, "one training"
    for run, lone in zip(runs, alone, strict=True):
        assert told(run) == told(lone)
        assert are_identical(weights_of(run), weights_of(lone))


@pytest.mark.slow
def test_runs_that_are_only_shown_differently_are_one_training(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sampling.sampler=ddim", "sampling.sampler=dpm++", "prompts=[]")
    runs = train_together([settings(f"out={tmp_path}", word) for word in words])
    assert len({run.path for run in runs}) == 3 and capsys.readouterr().err.count("training  ") == 1
    assert are_identical(weights_of(runs[0]), weights_of(runs[1]))
    pictures = [next(run.samples.rglob("update-000002/*.png")).read_bytes() for run in runs[:2]]
    assert pictures[0] != pictures[1] and not runs[2].samples.exists()


def test_which_runs_are_one_training(settings: Settings) -> None:
    def key(*words: str) -> str:
        return training_key(*check(settings(*words)))

    assert key("steps=5") == key("steps=9") == key("steps=9", "eval=standard", "sampling.steps=9", "prompts=[]")
    assert len({key(), key("lr=3e-4"), key("seed=5"), key("prior_weight=0"), key("resolution=64")}) == 5
    assert key("schedule=constant_with_warmup", "schedule.warmup=2", "steps=5") == key(
        "schedule=constant_with_warmup", "schedule.warmup=2", "steps=9"
    )
    assert key("schedule=cosine", "steps=5") != key("schedule=cosine", "steps=9"), "its first updates differ"
    assert key("early_stop=drift", "eval=quick", "steps=5") != key("early_stop=drift", "eval=quick", "steps=9")


class _Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("update", [3, pytest.param(5, marks=pytest.mark.thorough)])
def test_an_interrupted_training_goes_on_for_those_that_are_not_finished(
    settings: Settings, alone: list[RunDirectory], tmp_path: Path, update: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamlab.bookkeeping import Metrics

    configs, whole = line(settings, tmp_path, *MEASURED, "save_every=2"), Metrics.on_update

    def fails(self: Metrics, trainer: object, module: object, at: int) -> None:
        if at == update:
            raise _Stop("here")
        whole(self, trainer, module, at)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(_Stop):
        patched.setattr(Metrics, "on_update", fails)
        train_together(configs)
    runs = [RunDirectory(path) for path in tmp_path.iterdir()]
    states = {run.read_config()["steps"]: run.status()["state"] for run in runs}
    assert states == {n: "finished" if n < update else "failed" for n in STEPS}
    first = min((run for run in runs if run.read_config()["steps"] == 2), key=str)
    before = (first.path / "status.json").stat().st_mtime_ns
    for run, lone in zip(train_together(configs), alone, strict=True):
        assert are_identical(weights_of(run), weights_of(lone))
        assert [row["train/loss"] for row in run.read_metrics()] == [row["train/loss"] for row in lone.read_metrics()]
        assert run.evaluations.rows() == lone.evaluations.rows()
    assert (first.path / "status.json").stat().st_mtime_ns == before, "what was finished is left alone"


@pytest.mark.slow
def test_an_enlarged_grid_trains_only_what_is_new(
    settings: Settings, alone: list[RunDirectory], tmp_path: Path
) -> None:
    _, before = train_together(line(settings, tmp_path, *MEASURED, steps=(2, 4)))
    longest = train_together(line(settings, tmp_path, *MEASURED))[-1]
    assert longest.read_metrics()[:4] == before.read_metrics(), "down to the seconds that each update took"
    assert are_identical(weights_of(longest), weights_of(alone[-1]))
    ours, theirs = told(longest), told(alone[-1])
    assert ours["metrics"] == theirs["metrics"] and ours["pixels"].keys() <= theirs["pixels"].keys()  # type: ignore[attr-defined]
    known = {row["update"] for row in longest.evaluations.rows()}
    assert known == {0, 6}, "update 3 lies in the part that was not trained again, and no run was measured there"
