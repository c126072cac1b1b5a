"""A sweep is planned before it starts, and the plan is what happens: trainings, updates, what is left to do."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Settings, are_identical, start_command, weights_of
from hydra import initialize_config_dir
from wandb_files import records

from dreamlab.config import conf_dir, register_schemas
from dreamlab.errors import UserError
from dreamlab.plan import Plan, make_plan, plan_of, read_plan, settings_of, updates_to_do
from dreamlab.plan_table import summary
from dreamlab.runs import RunDirectory
from dreamlab.sweeps import runs_of
from dreamlab.train import train, train_together

GRID = [
    [f"lr={lr}", f"steps={steps}", f"prior_weight={weight}"]
    for lr in ("1e-5", "5e-5", "2e-4") for steps in (50, 100, 200) for weight in (0, 1)
]  # fmt: skip


def planned(tiny: tuple[str, ...], out: Path, *jobs: list[str]) -> Plan:
    register_schemas()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return make_plan([[*tiny, f"out={out}", *job] for job in jobs])


def test_eighteen_runs_are_six_trainings(tiny: tuple[str, ...], tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path / "outputs", *GRID)
    trainings = plan.trainings()
    assert [sorted(member.steps for member in training) for training in trainings] == [[50, 100, 200]] * 6
    assert sum(map(updates_to_do, trainings)) == 1200
    assert summary(plan).startswith("18 runs in 6 trainings: 1,200 updates instead of 2,100")
    assert [[member.number for member in plan.of_job(number)] for number in range(4)] == [[0, 2, 4], [1, 3, 5], [], []]
    plan.save(tmp_path)
    assert read_plan(tmp_path) == plan
    assert settings_of(plan.members[5]).lr == 1e-5 and settings_of(plan.members[5]).steps == 200


def test_a_schedule_that_depends_on_steps_shares_nothing(tiny: tuple[str, ...], tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path, *([f"steps={n}", "schedule=cosine"] for n in (5, 10)))
    assert [len(training) for training in plan.trainings()] == [1, 1]
    assert summary(plan).startswith("2 runs in 2 trainings: 15 updates;")


def test_a_member_that_cannot_be_trained_is_counted_and_left_to_its_job(tiny: tuple[str, ...], tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path, ["lr=-1"], ["lr=1e-4"])
    assert "1 can't be trained" in summary(plan)
    assert [member.number for member in plan.of_job(0)] == [0]


def test_no_plan_is_made_with_a_key_in_it(tiny: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a token of the hub"):
        planned(tiny, tmp_path, ["lr=1e-4"], [f"prompts=[hf_{'Ab1' * 11}]"])


@pytest.mark.slow
def test_what_is_finished_is_not_planned_again_and_the_time_is_told(
    settings: Settings, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    train_together([settings("steps=1", f"out={tmp_path}"), settings("steps=2", f"out={tmp_path}")])
    plan = planned(tiny, tmp_path, *([f"steps={n}"] for n in (1, 2, 5)))
    told = summary(plan)
    assert "3 updates instead of 8, 2 finished before" in told and "less than a minute" in told
    assert updates_to_do(planned(tiny, tmp_path, ["steps=2"]).members) == 0


@pytest.mark.slow
def test_what_failed_is_tried_again_on_request_only(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, again = settings(f"out={tmp_path}"), settings(f"out={tmp_path}", "retry=true")
    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "save_model", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            train(config)
    with pytest.raises(UserError, match=r"failed before \(OSError: no space left\).*retry=true"):
        train_together([config], in_sweep=True)
    assert train_together([again], in_sweep=True)[0].status()["state"] == "finished"


def run_sweep(out: Path, *words: str, log: Path) -> "subprocess.Popen[bytes]":
    return start_command("dreamlab.train", "-m", *words, f"out={out}", f"hydra.sweep.dir={out}-sweep", log=log)


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = run_sweep(tmp_path / "out", *tiny, "steps=3,7", "seed=1,2", "dry_run=true", log=tmp_path / "log.txt")
    said = (process.wait(120), (tmp_path / "log.txt").read_text())
    assert said[0] == 0 and "4 runs in 2 trainings: 14 updates instead of 20" in said[1], said
    assert not (tmp_path / "out-sweep").exists() and not any((tmp_path / "out").glob("*"))


def test_a_dry_run_of_one_run(settings: Settings) -> None:
    assert summary(plan_of(settings("steps=9"))).startswith("1 run in 1 training: 9 updates")
    with pytest.raises(UserError, match="lr=-1"):
        plan_of(settings("lr=-1"))


KILLED = ("lr=1e-4,3e-4", "steps=6,12", "save_every=3", "prompts=[]", "adapter.train=[text_encoder]")


@pytest.mark.slow
def test_a_sweep_killed_at_random_is_finished_by_the_same_command(
    settings: Settings, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    out, log, moments = tmp_path / "out", tmp_path / "log.txt", random.Random(4)
    done: dict[Path, int] = {}
    for _ in range(4):
        process, deadline = run_sweep(out, *tiny, *KILLED, log=log), time.monotonic() + 60
        rows = sum(path.stat().st_size for path in out.glob("*/metrics.jsonl"))
        while sum(path.stat().st_size for path in out.glob("*/metrics.jsonl")) <= rows and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path, stamp in done.items():
            assert path.stat().st_mtime_ns == stamp, "a finished run was trained again"
        done |= {run.path / "status.json": (run.path / "status.json").stat().st_mtime_ns
                 for run in map(RunDirectory, out.glob("*")) if run.status().get("state") == "finished"}  # fmt: skip
    assert run_sweep(out, *tiny, *KILLED, log=log).wait(200) == 0, log.read_text()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    runs = [RunDirectory(path) for path in runs_of(tmp_path / "out-sweep")]
    assert [run.status()["state"] for run in runs] == ["finished"] * 4
    assert [len(run.read_metrics()) for run in runs] == [6, 6, 12, 12], "steps comes first in the tiny command"
    assert (tmp_path / "out-sweep" / "comparison.html").is_file()
    alone = train(settings("lr=3e-4", "steps=12", "prompts=[]", "adapter.train=[text_encoder]"))
    assert are_identical(weights_of(runs[-1]), weights_of(alone))


@pytest.mark.slow
def test_two_sweeps_at_once_share_an_empty_cache_and_the_same_runs(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = (*tiny, "steps=2,4", "seed=1,2", "prompts=[]", f"cache_dir={tmp_path / 'cache'}", f"out={tmp_path / 'out'}")
    logs = {name: tmp_path / f"{name}.txt" for name in ("one", "other")}
    sweeps = [
        start_command("dreamlab.train", "-m", *words, f"hydra.sweep.dir={tmp_path / name}", log=log)
        for name, log in logs.items()
    ]
    codes = [sweep.wait(300) for sweep in sweeps]
    said = [log.read_text() for log in logs.values()]
    assert codes == [0, 0], said
    runs = [RunDirectory(path) for path in runs_of(tmp_path / "one")]
    assert len(runs) == 4 and all(run.status()["state"] == "finished" for run in runs)
    assert sum(text.count("training  ") for text in said) == 2, "each training was done by one of them"
    assert sum(text.count("class images") > 0 for text in said) == 1, "and so were the class images"
    (prior,) = (tmp_path / "cache" / "prior").iterdir()
    assert len(list(prior.glob("*.png"))) == 2 and os.listdir(tmp_path / "cache" / "latents")


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_a_group_in_wandb(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = (*tiny, "steps=1,2", "prompts=[]", "logger=wandb", f"hydra.sweep.dir={tmp_path / 'rex'}")
    process = start_command("dreamlab.train", "-m", *words, f"out={tmp_path / 'out'}", log=tmp_path / "log.txt")
    assert process.wait(200) == 0, (tmp_path / "log.txt").read_text()
    runs = [
        record.run for file in tmp_path.rglob("*.wandb") for record in records(file)
        if record.WhichOneof("record_type") == "run"
    ]  # fmt: skip
    assert {run.run_group for run in runs} == {"rex"}
    assert sorted(run.job_type for run in {run.run_id: run for run in runs}.values()) == ["sweep", "train", "train"]


def test_help_stays_quick_since_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'pytorch_lightning', 'diffusers', 'transformers', 'wandb', 'matplotlib'}"
    code = f"import sys, dreamlab.train, dreamlab.report, dreamlab.sweeps; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
