"""A training that breaks stops, says when and why, and keeps the state from before."""

import math
import signal
from pathlib import Path

import pytest
import torch
from conftest import Settings, start_command

from dreamlab.errors import UserError
from dreamlab.finiteness import MOST_SKIPPED, Finiteness, require_finite
from dreamlab.runs import RunDirectory
from dreamlab.train import train

GOOD = {"train/loss": 1.0, "train/grad_norm": 1.0}


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize(("key", "told"), [("train/loss", "the loss"), ("train/grad_norm", "the gradient's norm")])
def test_the_first_odd_number_ends_it(key: str, told: str, broken: float) -> None:
    watch = Finiteness()
    watch.check(1, GOOD)
    with pytest.raises(UserError, match=f"broke at update 2: {told} is {broken}"):
        watch.check(2, {**GOOD, key: broken})


def test_the_scaler_may_skip_but_not_for_ever() -> None:
    skipped = {"train/loss": 1.0, "train/grad_norm": math.inf, "train/loss_scale": 2.0}
    watch = Finiteness()
    for update in range(3 * MOST_SKIPPED):
        watch.check(update, skipped if update % MOST_SKIPPED else GOOD)
    with pytest.raises(UserError, match=f"skipped {MOST_SKIPPED + 1} updates in a row"):
        for update in range(MOST_SKIPPED + 1):
            watch.check(update, skipped)


def test_a_weight_that_is_no_number_is_not_kept() -> None:
    require_finite([torch.ones(3), torch.zeros(2)], 5)
    with pytest.raises(UserError, match="broke at update 5: it left weights"):
        require_finite([torch.ones(3), torch.tensor([0.0, torch.nan])], 5)


@pytest.mark.slow
def test_a_broken_run_keeps_its_last_good_state_and_nothing_after(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run, log = RunDirectory(tmp_path / "outputs" / "broken"), tmp_path / "log"
    words = ("steps=8", "save_every=1", "snapshot_every=1", "lr=1e9", "max_grad_norm=null", "name=broken")
    process = start_command("dreamlab.train", *tiny, *words, f"out={run.path.parent}", log=log)
    assert process.wait(120) == 2, log.read_text()
    told = [line for line in log.read_text().splitlines() if line.startswith("dreamlab: ")]
    rows, status = run.read_metrics(), run.status()
    broke_at = rows[-1]["update"]
    assert len(told) == 1 and f"Training broke at update {broke_at}: the loss is" in told[0]
    assert "Traceback" not in log.read_text()
    assert rows[-1]["train/loss"] is None and all(row["train/loss"] is not None for row in rows[:-1])
    assert status["state"] == "failed" and "Training broke" in status["message"]
    assert run.checkpoint == run.state(broke_at - 1) and status["update"] == broke_at - 1
    weights = torch.load(run.checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())
    assert not (run.snapshots / f"update-{broke_at:06d}").exists() and not run.model.exists()


@pytest.mark.slow
def test_a_broken_state_is_not_trained_on(settings: Settings) -> None:
    good = settings("steps=2", "name=same")
    train(good)
    run = RunDirectory(Path(good.out) / "same")
    state = torch.load(run.checkpoint, weights_only=True)
    next(iter(state["state_dict"].values())).fill_(torch.nan)
    torch.save(state, run.checkpoint)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match="Training broke at update 2: it left weights"):
        train(settings("steps=3", "save_every=1", "name=other", f"resume={run.path}"))
    assert signal.getsignal(signal.SIGINT) is before, "what comes after in this process is stopped as ever"
    assert run.status()["state"] == "finished"
