"""How the learning rate moves: diffusers' schedules under their names there, each with the settings it takes.

A schedule that takes `steps` moves towards the end of the run; one that doesn't begins alike however long the run is.
Its factors multiply each group's own learning rate. Called by checks.py, assemble.py and resume.py.
"""

import dataclasses
import re

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dreamlab.errors import UserError
from dreamlab.schema import Schedule

# What each takes: fields of Schedule, and the run's `steps`
SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": ("warmup",),
    "piecewise_constant": ("rules",),
    "linear": ("warmup", "steps"),
    "cosine": ("warmup", "steps", "cycles"),
    "cosine_with_restarts": ("warmup", "steps", "cycles"),
    "polynomial": ("warmup", "steps", "power"),
}
# Our names -> diffusers'
ARGUMENTS = {
    "warmup": "num_warmup_steps", "steps": "num_training_steps", "cycles": "num_cycles", "power": "power",
    "rules": "step_rules",
}  # fmt: skip
POLYNOMIAL_END = 1e-7  # where diffusers' polynomial schedule ends, for the rate `lr`
FACTOR = r"\d*\.?\d+(?:e[+-]?\d+)?"
RULES = re.compile(rf"(?:{FACTOR}:\d+,)+{FACTOR}")


def ignores_steps(schedule: str) -> bool:
    """Whether the first updates are the same however many follow, so that a longer run contains a shorter one."""
    return "steps" not in SCHEDULES[schedule]


def make_schedule(optimizer: Optimizer, chosen: Schedule, steps: int) -> LRScheduler:
    """Diffusers' schedule over `optimizer`, to be stepped once per update of `steps`."""
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    given = {**vars(chosen), "steps": steps}
    arguments = {ARGUMENTS[key]: given[key] for key in SCHEDULES[chosen.name] if given[key] is not None}
    made: LRScheduler = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(chosen.name)](optimizer, **arguments)
    return made


def check_schedule(chosen: Schedule, steps: int, lr: float) -> None:
    """Raise UserError where the schedule doesn't take what it is given, or can't work with it."""
    name, takes = chosen.name, SCHEDULES[chosen.name]
    for field in dataclasses.fields(Schedule):
        key, value = field.name, getattr(chosen, field.name)
        if key != "name" and key not in takes and value != field.default:
            others = ", ".join(other for other, theirs in SCHEDULES.items() if key in theirs)
            raise UserError(
                f"schedule={name} has no {key}: leave out schedule.{key}={value}, or use schedule={others}."
            )
    if not ignores_steps(name) and chosen.warmup >= steps:
        raise UserError(
            f"schedule.warmup={chosen.warmup} leaves none of steps={steps} for schedule={name} to fall in:"
            " give a smaller warmup or more steps."
        )
    if name == "cosine_with_restarts" and chosen.cycles is not None and chosen.cycles % 1:
        raise UserError(f"schedule.cycles={chosen.cycles}: schedule={name} takes a whole number of restarts.")
    if name == "polynomial" and lr <= POLYNOMIAL_END:
        raise UserError(f"schedule=polynomial falls to {POLYNOMIAL_END:g}, so lr={lr:g} must be above. Use linear.")
    if name == "piecewise_constant":
        _check_rules(chosen.rules)


def _check_rules(rules: str | None) -> None:
    """Factors and the updates they end at, as "1:100,0.1"."""
    remedy = "Give factors of lr and the updates up to which they hold, such as 1:100,0.1"
    if rules is None or not RULES.fullmatch(rules):
        raise UserError(f"schedule.rules={rules}: no such rules. {remedy} (lr for 100 updates, then a tenth of it).")
    ends = [int(rule.split(":")[1]) for rule in rules.split(",")[:-1]]
    if any(end <= before for before, end in zip([0, *ends], ends, strict=False)):
        raise UserError(f"schedule.rules={rules}: the updates {ends} must rise from above 0. {remedy}.")
