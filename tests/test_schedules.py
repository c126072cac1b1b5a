"""Learning-rate schedules: closed forms, what each takes, and which depend on the run's length."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Settings, TrainRun

from dreamlab.checks import check
from dreamlab.config import conf_dir
from dreamlab.errors import UserError
from dreamlab.schedules import SCHEDULES, ignores_steps, make_schedule
from dreamlab.schema import Schedule

LR, STEPS = 1e-4, 12
CASES: list[tuple[Schedule, Callable[[int], float]]] = [  # settings -> factor of lr in update u (0: the first)
    (Schedule("constant"), lambda u: 1.0),
    (Schedule("constant_with_warmup", warmup=4), lambda u: min(1, u / 4)),
    (Schedule("piecewise_constant", rules="1:3,0.5:8,0.1"), lambda u: 1 if u < 3 else 0.5 if u < 8 else 0.1),
    (Schedule("piecewise_constant", rules=".2:1,1e0:2,2e-1"), lambda u: 1 if u == 1 else 0.2),
    (Schedule("linear"), lambda u: 1 - u / 12),
    (Schedule("linear", warmup=2), lambda u: u / 2 if u < 2 else (12 - u) / 10),
    (Schedule("cosine"), lambda u: (1 + math.cos(math.pi * u / 12)) / 2),
    (Schedule("cosine", cycles=1.5), lambda u: (1 + math.cos(3 * math.pi * u / 12)) / 2),
    (Schedule("cosine", warmup=2), lambda u: u / 2 if u < 2 else (1 + math.cos(math.pi * (u - 2) / 10)) / 2),
    (Schedule("cosine_with_restarts"), lambda u: (1 + math.cos(math.pi * u / 12)) / 2),
    (Schedule("cosine_with_restarts", cycles=3), lambda u: (1 + math.cos(math.pi * (u % 4) / 4)) / 2),
    (Schedule("polynomial", power=2), lambda u: (1 - 1e-7 / LR) * (1 - u / 12) ** 2 + 1e-7 / LR),
    (Schedule("polynomial", warmup=2), lambda u: u / 2 if u < 2 else (1 - 1e-3) * (12 - u) / 10 + 1e-3),
]


def rates(chosen: Schedule, steps: int, count: int) -> list[float]:
    """The learning rates of the first updates, of a group at LR and of one at a tenth of it."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (LR, LR / 10)]
    optimizer = torch.optim.SGD(groups, lr=LR)
    schedule = make_schedule(optimizer, chosen, steps)
    seen = []
    for _ in range(count):
        main, tenth = (group["lr"] for group in optimizer.param_groups)
        assert tenth == pytest.approx(main / 10)
        seen.append(main)
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(("chosen", "factor"), CASES, ids=lambda case: str(vars(case)) if vars(case) else "")
def test_a_schedule_is_its_closed_form(chosen: Schedule, factor: Callable[[int], float]) -> None:
    assert rates(chosen, STEPS, STEPS) == pytest.approx([LR * factor(u) for u in range(STEPS)], abs=1e-15)


def test_every_schedule_of_diffusers_is_here_and_has_its_file() -> None:
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    assert set(SCHEDULES) == {kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION} == {case.name for case, _ in CASES}
    assert {path.stem for path in (Path(conf_dir()) / "schedule").glob("*.yaml")} == set(SCHEDULES)


@pytest.mark.parametrize("chosen", [case for case, _ in CASES], ids=lambda case: case.name)
def test_whether_a_longer_run_begins_like_a_shorter_one_is_known(chosen: Schedule) -> None:
    is_alike = rates(chosen, STEPS, STEPS) == rates(chosen, 3 * STEPS, STEPS)
    assert ignores_steps(chosen.name) is is_alike


def test_a_run_follows_its_schedule(train_run: TrainRun) -> None:
    words = ("schedule=piecewise_constant", 'schedule.rules="1:1,0.5:2,0.1"', "text_encoder_lr=1e-5", "lr=1e-4")
    rows = train_run("steps=3", "prior_weight=0", *words).read_metrics()
    assert [row["train/lr_unet"] for row in rows] == pytest.approx([1e-4, 5e-5, 1e-5])
    assert [row["train/lr_text_encoder"] for row in rows] == pytest.approx([1e-5, 5e-6, 1e-6])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("schedule.warmup=5",), ("schedule=constant has no warmup", "constant_with_warmup, linear")),
        (("schedule=piecewise_constant", "schedule.warmup=1"), ("piecewise_constant has no warmup", "leave out")),
        (("schedule=linear", "schedule.power=2"), ("schedule=linear has no power", "schedule=polynomial")),
        (("schedule=linear", "schedule.cycles=2"), ("linear has no cycles", "cosine, cosine_with_restarts")),
        (("schedule=cosine", 'schedule.rules="1:1,1"'), ("cosine has no rules", "schedule=piecewise_constant")),
        (("schedule=cosine_with_restarts", "schedule.cycles=1.5"), ("cycles=1.5", "whole number")),
        (("schedule=polynomial", "lr=1e-7"), ("lr=1e-07 must be above", "Use linear")),
        (("schedule=polynomial", "steps=3", "schedule.warmup=3"), ("warmup=3 leaves none", "more steps")),
        (("schedule=piecewise_constant", "schedule.rules=null"), ("rules=None", "1:100,0.1")),
        (("schedule=piecewise_constant", 'schedule.rules="1:a,0.1"'), ("rules=1:a,0.1: no such", "1:100,0.1")),
        (("schedule=piecewise_constant", 'schedule.rules="1:9,-1"'), ("rules=1:9,-1: no such", "1:100,0.1")),
        (("schedule=piecewise_constant", 'schedule.rules="0.5"'), ("rules=0.5: no such", "1:100,0.1")),
        (("schedule=piecewise_constant", 'schedule.rules="1:9,2:9,1"'), ("[9, 9] must rise",)),
        (("schedule=piecewise_constant", 'schedule.rules="1:0,1"'), ("[0] must rise",)),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_what_a_schedule_cannot_use_is_refused(
    settings: Settings, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        check(settings(*words))
    assert all(part.lower() in str(refused.value).lower() for part in parts), refused.value
