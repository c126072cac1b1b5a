"""Measured runs: moments, probes and verdicts as files, nothing of it felt by training."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Settings, TrainRun, are_identical, noise_picture, weights_of
from PIL import Image

from dreamlab import assemble, encoders, feed, measuring
from dreamlab.checks import check
from dreamlab.commands import Evaluate
from dreamlab.errors import UserError
from dreamlab.evaluate import evaluate
from dreamlab.evaluation import Judge, Photos, Shot
from dreamlab.moments import plan, spaced
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory
from dreamlab.schema import Eval

SMALL = (
    "eval=quick", "eval.far=2", "eval.class_images=3", "eval.unrelated=1", "eval.steps=2", "eval.moments=2",
    "eval.probes=2", "data.holdout=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Judge:
    pictures = [noise_picture(seed, (64, 64)) for seed in range(3)]
    return Judge(encoders.load("pocket-dino"), encoders.load("pocket-clip"), [Photos(pictures, [])])


def test_the_photos_themselves_are_like_the_photos_and_are_copies(judge: Judge) -> None:
    pictures = [noise_picture(seed, (64, 64)) for seed in range(3)]
    shots = [Shot("a photo of a zwx dog", "near", seed, token="zwx") for seed in range(3)]
    scores = judge.score(shots, pictures, pictures)
    alike = judge.learnt[0][0] @ judge.learnt[0][0].T
    assert scores.numbers["eval/dino"] == pytest.approx(float(alike.mean()), abs=1e-5)
    assert scores.numbers["eval/dino_photos"] == pytest.approx(float((alike.sum() - 3) / 6), abs=1e-5)
    assert scores.numbers["eval/copies"] == 1.0 and scores.numbers["eval/dino_near"] == scores.numbers["eval/dino"]
    assert [row["nearest_photo"] for row in scores.shots] == [0, 1, 2]
    assert all(row["similarity"] == pytest.approx(1, abs=1e-5) and abs(row["drift"]) < 1e-5 for row in scores.shots)


def test_unchanged_class_images_have_not_drifted_and_equal_ones_have_collapsed(judge: Judge) -> None:
    base = [noise_picture(seed, (64, 64)) for seed in range(10, 14)]
    shots = [Shot("a photo of a dog", "class", seed) for seed in range(4)]
    same = judge.score(shots, base, base).numbers
    assert same["eval/pres_change"] == 0 and same["eval/collapse"] == 1 and abs(same["eval/drift_class"]) < 1e-5
    one = judge.score(shots, [base[0]] * 4, base).numbers
    assert one["eval/collapse"] == pytest.approx(0, abs=1e-5) and one["eval/drift_class"] > 0.01


def test_words_are_checked_on_pixels(judge: Judge) -> None:
    blue = Image.new("RGB", (64, 64), (40, 60, 220))
    shots = [Shot(f"a photo of a zwx dog on a {colour} background", "far", 1) for colour in ("blue", "green")]
    scores = judge.score(shots, [blue, blue], [blue, blue])
    assert scores.numbers["eval/words"] == 0.5
    assert [row["words"] for row in scores.shots] == [{"blue": True}, {"green": False}]


def test_a_plan_holds_each_kind_with_seeds_of_its_own(settings: Settings) -> None:
    _, subject = check(settings("class_word=dog"))
    chosen = Eval(prompts="pocket", near=2, far=3, class_images=4, unrelated=2, images_per_prompt=2, seed=5)
    shots = plan(chosen, subject.concepts).shots
    assert Counter(shot.kind for shot in shots) == {"near": 4, "far": 6, "unrelated": 4, "class": 4}
    assert {shot.seed for shot in shots if shot.kind == "far"} == {5, 6}
    assert [shot.seed for shot in shots if shot.kind == "class"] == [5, 6, 7, 8]
    assert not any("zwx" in shot.prompt for shot in shots if shot.kind in ("class", "unrelated"))
    assert spaced(200, 3) == {67, 133, 200} and spaced(2, 5) == {1, 2} and spaced(10, 0) == set()


@pytest.mark.slow
def test_a_measured_run_learns_the_very_same_and_leaves_its_numbers(train_run: TrainRun) -> None:
    plain = train_run("steps=4", "name=plain", "data.holdout=1")
    measured = train_run("steps=4", "name=measured", *SMALL)
    assert are_identical(weights_of(plain), weights_of(measured))
    keys = [key for key in plain.read_metrics()[0] if key.startswith("train/")]
    for one, other in zip(plain.read_metrics(), measured.read_metrics(), strict=True):
        assert [one.get(key) for key in keys] == [other.get(key) for key in keys]

    assert [row["update"] for row in measured.evaluations.rows()] == [0, 2, 4]
    assert [row["update"] for row in measured.probes.rows()] == [0, 2, 4]
    first = measured.probes.rows()[0]
    assert all(value == (1 if key.endswith("loss") else 0) for key, value in first.items() if key != "update")
    assert {"probe/train_loss", "probe/held_out_loss", "probe/class_loss", "probe/empty_drift"} <= set(first)
    assert measured.probes.rows()[-1]["probe/train_drift"] > 0
    for update in (0, 2, 4):
        shots = json.loads((measured.evaluated / f"update-{update:06d}" / "scores.json").read_text())["shots"]
        assert len(shots) == 1 + 2 + 1 + 3 and all(
            (measured.evaluated / f"update-{update:06d}" / shot["file"]).is_file() for shot in shots
        )
    assert len(list((measured.evaluated / "photos").glob("0-0*.png"))) == 2
    assert len(list((measured.evaluated / "photos").glob("0-held-*.png"))) == 1
    assert json.loads(measured.verdict.read_text())["state"] in ("good", "overfitted", "underfitted")


@pytest.mark.slow
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(train_run: TrainRun) -> None:
    at_once = train_run("steps=4", "name=at_once", *SMALL, "eval.at=[2]", "eval.moments=1")
    short = train_run("steps=2", "name=short", *SMALL)
    longer = train_run("steps=4", "name=longer", *SMALL, f"resume={short.path}", "eval.at=[2]", "eval.moments=1")
    assert are_identical(weights_of(longer), weights_of(at_once))
    ours, theirs = longer.evaluations.rows(), at_once.evaluations.rows()
    assert ours[0] == theirs[0] and ours[-1] == theirs[-1]
    assert longer.probes.rows()[-1] == at_once.probes.rows()[-1]


def test_probes_are_a_function_of_model_and_pictures(settings: Settings) -> None:
    def asked(*words: str) -> tuple[dict[str, float], Any]:
        config, subject = check(settings(*SMALL, *words))
        model = assemble.base_model(config)
        feed.image_sets(config, subject, model)
        module = assemble.module(config, model)
        probes = measuring.probes(config, subject, RunLog(RunDirectory(Path(config.out)), config.steps), module)
        assert probes is not None
        assert probes.grid.ask() == probes.grid.untouched(), "asked twice, the model answers the same bit for bit"
        with torch.no_grad():
            for weight in module.trained.parameters():
                weight.mul_(1.001)
        return probes.grid.ask(), module

    state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    one, module = asked("seed=1")
    assert module.trained["unet"].training
    assert torch.equal(torch.random.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
    assert one == asked("seed=2")[0], "runs of other seeds are asked the same"
    assert all(value > 0 for value in one.values())


@pytest.mark.slow
def test_early_stop_ends_a_run_that_forgets_its_class(train_run: TrainRun) -> None:
    run = train_run(
        "steps=30", "lr=3e-3", "prior=none", *SMALL, "eval.class_images=6", "eval.at=[10,20]", "eval.moments=1",
        "early_stop=drift", "eval.steps=6",
    )  # fmt: skip
    status = run.status()
    assert status["state"] == "finished" and status["update"] < 30 and status["stopped_early"]
    assert run.model.is_dir() and run.read_metrics()[-1]["update"] == status["update"]


@pytest.mark.slow
def test_the_command_measures_a_finished_run_its_snapshots_and_a_strangers_model(
    train_run: TrainRun, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run("steps=4", "snapshot_every=2", *SMALL)
    before = run.evaluations.rows()
    chosen = Eval(
        prompts="pocket", near=1, far=2, class_images=3, unrelated=1, moments=1, steps=2, guidance=5.0,
        dino="pocket-dino", clip="pocket-clip",
    )  # fmt: skip
    evaluate(Evaluate(run=str(run.path), eval=chosen, device="cpu"))
    after = run.evaluations.rows()
    assert [row["update"] for row in after] == [0, 2, 4]
    assert after[0] == before[0]
    for key, value in after[2].items():
        assert value == pytest.approx(before[2][key], abs=0.02), key
    assert json.loads(run.verdict.read_text())["sentence"] in capsys.readouterr().out

    given = {"base": "pocket", "instance_dir": str(photos), "class_word": "dog", "out": str(tmp_path / "theirs")}
    theirs = evaluate(Evaluate(run=str(run.model), eval=chosen, device="cpu", **given))
    assert theirs.path == tmp_path / "theirs" and [row["update"] for row in theirs.evaluations.rows()] == [0, 1]
    with pytest.raises(UserError, match=r"say base=\.\.\., instance_dir=\.\.\., class_word=\.\.\. too"):
        evaluate(Evaluate(run=str(run.model), eval=chosen, device="cpu"))
    with pytest.raises(UserError, match="leave them out"):
        evaluate(Evaluate(run=str(run.path), base="pocket", eval=chosen))
