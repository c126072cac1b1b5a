"""A run that is stopped, by Ctrl-C or by a kill, goes on to the very weights it would have had."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Settings, TrainRun, are_identical, start_command, weights_in, weights_of

from dreamlab import assemble, feed
from dreamlab.checks import check
from dreamlab.errors import UserError
from dreamlab.resume import Start
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory, update_of
from dreamlab.train import train

STEPS = 16
LONG = (f"steps={STEPS}", "save_every=2", "name=long")


def wait_for_update(process: "subprocess.Popen[bytes]", run: RunDirectory, update: int, log: Path) -> None:
    """Return when the run has written the metrics of `update` and kept a state."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if run.checkpoint.is_file() and len(run.read_metrics()) >= update:
            return
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.02)
    raise AssertionError(f"no update {update} in time: {log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module")
def uninterrupted(settings: Settings) -> RunDirectory:
    return train(settings(*LONG))


def stopped(how: signal.Signals, tiny: tuple[str, ...], folder: Path) -> tuple[RunDirectory, int]:
    """A run of the command line stopped after its third update, and its exit code."""
    run, log = RunDirectory(folder / "outputs" / "long"), folder / "log.txt"
    process = start_command("dreamlab.train", *tiny, *LONG, f"out={run.path.parent}", log=log)
    try:
        wait_for_update(process, run, 3, log)
        process.send_signal(how)
        return run, process.wait(60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_after_ctrl_c_the_same_command_ends_at_the_same_weights(
    uninterrupted: RunDirectory, train_run: TrainRun, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    run, code = stopped(signal.SIGINT, tiny, tmp_path)
    status = run.status()
    assert code == 130
    assert status["state"] == "interrupted" and 3 <= status["update"] < STEPS
    assert [row["update"] for row in run.read_metrics()] == list(range(1, status["update"] + 1))
    assert not run.model.exists()

    train_run(*LONG)
    assert run.status()["state"] == "finished"
    assert [row["update"] for row in run.read_metrics()] == list(range(1, STEPS + 1))
    assert are_identical(weights_of(run), weights_of(uninterrupted))


@pytest.mark.slow
def test_after_a_kill_the_same_command_ends_at_the_same_weights(
    uninterrupted: RunDirectory, train_run: TrainRun, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    run, code = stopped(signal.SIGKILL, tiny, tmp_path)
    assert code == -signal.SIGKILL
    assert run.status()["state"] == "running" and run.checkpoint.is_file()

    train_run(*LONG)
    assert run.status()["state"] == "finished"
    assert [row["update"] for row in run.read_metrics()] == list(range(1, STEPS + 1))
    losses, wanted = ([row["train/loss"] for row in one.read_metrics()] for one in (run, uninterrupted))
    assert losses == wanted
    assert are_identical(weights_of(run), weights_of(uninterrupted))


def test_a_state_holds_the_trained_parts_and_nothing_frozen(train_run: TrainRun) -> None:
    run = train_run("adapter.train=[unet]")
    state = torch.load(run.checkpoint, weights_only=True)
    assert {name.split(".")[1] for name in state["state_dict"]} == {"unet"}
    assert state["dreamlab"]["update"] == 2


def test_frozen_weights_of_a_trained_part_are_left_out_and_found_again(settings: Settings, tmp_path: Path) -> None:
    config, subject = check(settings("steps=2", "save_every=1", "keep_states=9", "adapter.train=[text_encoder]"))

    def fitted(start: Start) -> tuple[RunDirectory, dict[str, torch.Tensor]]:
        model = assemble.base_model(config)
        sets, run = feed.image_sets(config, subject, model), RunDirectory(tmp_path / "run")
        module = assemble.module(config, model)
        for name, weight in module.trained.named_parameters():
            weight.requires_grad_("embeddings" not in name)
        trainer = assemble.trainer(config, subject, [RunLog(run, config.steps)], [])
        trainer.fit(module, feed.batches(config, sets, start, module), ckpt_path=start.checkpoint, weights_only=True)
        return run, weights_in(model)

    (tmp_path / "run").mkdir()
    run, at_once = fitted(Start("s"))
    kept = torch.load(run.state(1), weights_only=True)["state_dict"]
    assert kept and not any("embeddings" in name for name in kept)
    run.state(2).unlink()
    assert are_identical(fitted(Start("s", run.state(1), 1))[1], at_once)


def test_a_longer_run_goes_on_from_a_shorter_one(train_run: TrainRun) -> None:
    short = train_run("steps=2", "name=short")
    longer = train_run("steps=4", "name=longer", f"resume={short.path}")
    at_once = train_run("steps=4", "name=at_once")
    assert [row["update"] for row in longer.read_metrics()] == [3, 4]
    assert are_identical(weights_of(longer), weights_of(at_once))


def test_a_finished_run_is_not_trained_again(train_run: TrainRun) -> None:
    before = train_run()
    stamp = before.metrics.stat().st_mtime_ns
    after = train_run()
    assert after.path == before.path and after.metrics.stat().st_mtime_ns == stamp


def test_never_starts_over(train_run: TrainRun) -> None:
    before = train_run("name=again")
    (before.path / "left-over.txt").write_text("old")
    after = train_run("name=again", "resume=never", "seed=7")
    assert not (after.path / "left-over.txt").exists() and len(after.read_metrics()) == 2


def test_another_learning_rate_is_refused_by_name_and_value(train_run: TrainRun) -> None:
    run = train_run("name=first")
    with pytest.raises(UserError, match=r"lr \(5e-05 there, 0\.001 now\).*resume=never"):
        train_run("steps=4", "name=second", "lr=1e-3", f"resume={run.path}")
    with pytest.raises(UserError, match=r"other settings or photos.*resume=never"):
        train_run("name=first", "lr=1e-3")


def test_fewer_steps_than_the_state_has_are_refused(train_run: TrainRun) -> None:
    run = train_run("steps=3", "name=first")
    with pytest.raises(UserError, match="update 3 already, past steps=2"):
        train_run("steps=2", "name=second", f"resume={run.path}")


def test_other_steps_are_refused_where_the_schedule_depends_on_them(train_run: TrainRun) -> None:
    run = train_run("schedule=cosine", "name=first")
    with pytest.raises(UserError, match=r"steps \(2 there, 4 now\)"):
        train_run("schedule=cosine", "steps=4", "name=second", f"resume={run.path}")


def test_a_broken_state_and_a_missing_one_are_refused(train_run: TrainRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="no readable resume state"):
        train_run(f"resume={broken}")
    with pytest.raises(UserError, match="there is no resume state"):
        train_run(f"resume={tmp_path / 'nowhere'}")


def test_the_newest_states_are_kept(train_run: TrainRun) -> None:
    run = train_run("steps=5", "save_every=1", "keep_states=3")
    assert [state.name for state in run.states()] == [f"update-00000{update}.ckpt" for update in (5, 4, 3)]
    assert sorted(path.name for path in run.checkpoint.parent.iterdir()) == sorted(state.name for state in run.states())
    one = train_run("steps=3", "save_every=2", "name=one")
    assert [update_of(state) for state in one.states()] == [3]


def unfinished(run: RunDirectory) -> None:
    """Make a finished run look as if it had been killed after its last state."""
    run.set_status("running", update=run.status()["update"], signature=run.status()["signature"], pid=1)
    shutil.rmtree(run.model)


@pytest.mark.parametrize(
    "harm", ["cut", *(pytest.param(harm, marks=pytest.mark.thorough) for harm in ("empty", "hole"))]
)
def test_an_unreadable_state_is_passed_over_for_the_next_older(
    train_run: TrainRun, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    long = ("steps=4", "save_every=1", "keep_states=2", "name=long")
    run = train_run(*long)
    wanted = weights_of(run)
    unfinished(run)
    whole = bytearray(run.checkpoint.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 4096] = bytes(4096)
    run.checkpoint.write_bytes({"cut": whole[:middle], "empty": b"", "hole": whole}[harm])
    capsys.readouterr()
    again = train_run(*long)
    said = capsys.readouterr().err
    assert "update-000004.ckpt is no readable resume state" in said and "going on from update 3." in said
    assert [row["update"] for row in again.read_metrics()] == [1, 2, 3, 4]
    assert are_identical(weights_of(again), wanted)
    assert [update_of(state) for state in again.states()] == [4, 3]
    assert torch.load(again.checkpoint, weights_only=True)["dreamlab"]["update"] == 4


def test_the_layout_of_earlier_versions_still_resumes(train_run: TrainRun) -> None:
    run = train_run("steps=2", "name=short")
    run.checkpoint.rename(run.checkpoint.with_name("last.ckpt"))
    assert [state.name for state in run.states()] == ["last.ckpt"]
    longer = train_run("steps=4", "name=longer", f"resume={run.path}")
    assert [row["update"] for row in longer.read_metrics()] == [3, 4]
    unfinished(run)
    assert train_run("steps=2", "name=short").model.is_dir()


def test_the_id_of_a_killed_process_may_be_anybodys(train_run: TrainRun) -> None:
    run = train_run("name=killed")
    unfinished(run)
    (run.path / "status.json").write_text(
        (run.path / "status.json").read_text().replace('"pid": 1', f'"pid": {os.getppid()}')
    )
    assert train_run("name=killed").model.is_dir()


def test_a_run_that_another_process_trains_is_left_alone(train_run: TrainRun, tmp_path: Path) -> None:
    run = train_run("name=busy")
    unfinished(run)
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, run.lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline()
        for resume in ("auto", "never"):
            with pytest.raises(UserError, match="being trained by process 1"):
                train_run("name=busy", f"resume={resume}")
    finally:
        holder.kill()
        holder.communicate()
    assert train_run("name=busy").model.is_dir(), "a claim ends with its process"


def test_a_refused_run_leaves_no_folder(train_run: TrainRun, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train_run(f"resume={tmp_path / 'nowhere'}", "name=refused")
    assert not (tmp_path / "outputs" / "refused").exists()


def test_a_foreign_folder_is_left_alone(train_run: TrainRun, tmp_path: Path) -> None:
    mine = tmp_path / "outputs" / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("two years of work")
    for resume in ("auto", "never"):
        with pytest.raises(UserError, match="is no run of dreamlab"):
            train_run("name=mine", f"resume={resume}")
    assert (mine / "thesis.txt").read_text() == "two years of work"
