"""The verdict's rule on numbers, and on runs that are known to be good, overfitted and underfitted."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Settings

from dreamlab.train import train
from dreamlab.verdict import judge, should_stop

BASE = {
    "update": 0, "eval/dino_near": 0.4, "eval/dino": 0.4, "eval/dino_photos": 0.8, "eval/words": 1.0,
    "eval/copies": 0.0, "eval/pres_change": 0.0, "eval/drift_class": 0.0, "eval/collapse": 1.0,
}  # fmt: skip


def moment(update: int, dino: float, **changes: float) -> dict[str, Any]:
    told = {f"eval/{name}": value for name, value in changes.items()}
    return {**BASE, "update": update, "eval/dino_near": dino, "eval/dino": dino, **told}


def test_a_run_that_learns_without_harm_is_good_and_its_best_moment_is_kept() -> None:
    told = judge([BASE, moment(50, 0.5), moment(100, 0.65), moment(150, 0.7)])
    assert (told.state, told.keep) == ("good", 150)
    assert told.sentence == "The subject is learnt by update 100: keep update 150."


def test_the_moment_before_the_harm_is_kept() -> None:
    copied = moment(150, 0.79, copies=0.4)
    told = judge([BASE, moment(50, 0.5), moment(100, 0.65), copied])
    assert (told.state, told.keep) == ("good", 100)
    assert "from 150 on: 40% of the samples are copies" in told.sentence and told.sentence.endswith("keep update 100.")


def test_a_run_that_never_learns_is_underfitted_and_told_what_to_do() -> None:
    told = judge([BASE, moment(100, 0.45), moment(200, 0.5)])
    assert (told.state, told.keep) == ("underfitted", None)
    assert "more steps, or a higher lr" in told.sentence


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"copies": 0.2}, "copies of photos"),
        ({"pres_change": 0.32, "pres_change_low": 0.1, "pres_change_high": 0.5}, "towards the subject"),
        ({"drift_unrelated": 0.5}, "unrelated pictures have drifted"),
        ({"words": 0.5}, "obeyed 0.50 instead of 1.00"),
        ({"collapse": 0.3, "collapse_high": 0.6}, "30% of their diversity"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_every_kind_of_harm_makes_a_learnt_run_overfitted(harm: dict[str, float], said: str) -> None:
    told = judge([BASE, moment(100, 0.7, **harm), moment(200, 0.75, **harm)])
    assert (told.state, told.keep) == ("overfitted", 100)
    assert said in told.sentence and "Halve the lr" in told.sentence


def test_what_could_be_chance_is_no_harm() -> None:
    wide = {"pres_change": 0.35, "pres_change_low": -0.1, "pres_change_high": 0.5}
    assert judge([BASE, moment(100, 0.7, **wide)]).state == "good"
    assert judge([BASE, moment(100, 0.7, collapse=0.3, collapse_high=1.2)]).state == "good"
    assert judge([BASE, moment(100, 0.7, copies=0.05, words=0.85)]).state == "good"


def test_without_a_moment_or_without_photos_to_compare_nothing_is_claimed() -> None:
    blind = {**BASE, "eval/dino_photos": 0.45}  # the photos differ as much as any picture does from them
    for rows in ([], [BASE], [{"update": 0, "eval/dino": 0.4}, moment(100, 0.7)], [blind, moment(100, 0.7)]):
        told = judge(rows)
        assert (told.state, told.keep) == ("unmeasured", None) and "ot measured" in told.sentence
    assert "obeyed 0.30" in judge([blind, moment(100, 0.7, words=0.3)]).sentence, "harm is told all the same"


def test_a_held_out_photo_that_is_denoised_worse_than_before_is_harm() -> None:
    probes = [{"update": 0, "probe/held_out_loss": 1.0}, {"update": 90, "probe/held_out_loss": 1.2}]
    rows = [BASE, moment(50, 0.65), moment(100, 0.7)]
    told = judge(rows, probes)
    assert (told.state, told.keep) == ("good", 50) and "from 100 on: held-out photos" in told.sentence


def test_training_stops_early_by_the_rule_that_was_asked_for() -> None:
    copied, drifted = (
        moment(100, 0.7, copies=0.3),
        moment(100, 0.7, pres_change=0.35, pres_change_low=0.2, pres_change_high=0.4),
    )
    assert should_stop([BASE, copied], "memorisation") and not should_stop([BASE, copied], "drift")
    assert should_stop([BASE, drifted], "drift") and not should_stop([BASE, drifted], "memorisation")
    assert should_stop([BASE, copied], "none") is None and should_stop([BASE], "drift") is None


DOG = Path(__file__).parent.parent.parent / "shared" / "data" / "dreambooth" / "dog"
REGIMES = {  # known by eye: the subject and nothing broken, everything became the dog, nothing changed
    "good": ("steps=150",), "overfitted": ("steps=50", "lr=5e-4", "prior=none"),
    "underfitted": ("steps=10", "lr=1.7e-6", "prior=none"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not DOG.is_dir(), reason="the shared photos are not here")
@pytest.mark.parametrize("state", REGIMES)
def test_runs_of_three_known_kinds_are_called_so(settings: Settings, tmp_path: Path, state: str) -> None:
    run = train(settings(
        f"instance_dir={DOG}", f"out={tmp_path}", "resolution=64", "batch_size=2", "num_prior_images=8",
        "prior.steps=12", "prompts=[]",
        "eval=quick", "eval.near=2", "eval.images_per_prompt=2", "eval.class_images=4", "eval.steps=12",
        "eval.moments=1", "eval.probes=1", *REGIMES[state],
    ))  # fmt: skip
    told = json.loads(run.verdict.read_text())
    assert told["state"] == state, told["sentence"]
    assert told["keep"] == {"good": 150, "overfitted": 50, "underfitted": None}[state]
