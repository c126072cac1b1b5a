"""A sweep's plan as a person reads it: trainings, updates, and about how long. Called by sweeps.py and train.py."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from dreamlab.plan import Member, Plan, pace, updates_to_do
from dreamlab.progress import console

MAX_ROWS = 40


def tell(plan: Plan) -> None:
    """Print what will be trained, and what is saved by training it together."""
    trainings, able = plan.trainings(), [member for member in plan.members if member.folder]
    table = Table(title=summary(plan), title_justify="left", title_style="")
    for heading in ("training", "settings", "updates", "runs", "state"):
        table.add_column(heading, overflow="fold")
    for number, training in enumerate(trainings[:MAX_ROWS], 1):
        words = [word for word in training[0].words if not word.startswith("steps=")]
        steps = ", ".join(map(str, sorted({member.steps for member in training})))
        runs = ", ".join(f"#{member.number + 1}" for member in training)
        table.add_row(str(number), " ".join(words), steps, runs, _state(training))
    console.print(table, markup=False) if trainings else None
    if len(trainings) > MAX_ROWS:
        console.print(f"... and {len(trainings) - MAX_ROWS} more trainings.")
    moving = sorted({str(member.settings["schedule"]["name"]) for member in able if _is_apart(member)})
    if moving and len({member.steps for member in able}) > 1:
        console.print(
            f"schedule={','.join(moving)} depends on steps, so runs that differ in steps are trained separately.",
            markup=False,
        )


def summary(plan: Plan) -> str:
    """Members, trainings, updates and time in one sentence."""
    trainings, able = plan.trainings(), [member for member in plan.members if member.folder]
    to_do = sum(map(updates_to_do, trainings))
    alone = sum(member.steps for member in able)
    finished = sum(member.end[0] == "finished" for member in able)
    told = f"{_count(len(plan.members), 'run')} in {_count(len(trainings), 'training')}: {_count(to_do, 'update')}"
    told += f" instead of {alone:,}" * (alone != to_do) + f", {finished} finished before" * bool(finished)
    refused = len(plan.members) - len(able)
    return told + f", {refused} can't be trained" * bool(refused) + _time(plan, to_do) + "."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _time(plan: Plan, updates: int) -> str:
    """About how long, where a run like these has been timed on this machine."""
    able = [member for member in plan.members if member.folder]
    waiting = sum(member.end[0] != "finished" for member in able)
    known = pace(Path(str(able[0].folder)).parent, able[0].settings) if able and waiting else None
    if known is None:
        return "; how long is known once a run like these has finished" * bool(waiting)
    update_s, run_s = known
    minutes = (updates * update_s + waiting * run_s) / 60
    return f"; about {minutes:,.0f} min, one after another" if minutes >= 1 else "; less than a minute"


def _state(training: Sequence[Member]) -> str:
    """How many are done, and from where the others go on."""
    states = [member.end for member in training]
    done = sum(state == "finished" for state, _ in states)
    if done == len(training):
        return "finished"
    failed = sum(state == "failed" for state, _ in states)
    to_do = updates_to_do(training)
    begins = max(member.steps for member in training) - to_do
    told = [f"{done} finished" * bool(done), f"{failed} failed before" * bool(failed)]
    told += [f"from update {begins}" if begins else ""]
    return ", ".join(filter(None, told)) or "new"


def _is_apart(member: Member) -> bool:
    from dreamlab.schedules import ignores_steps

    return not ignores_steps(member.settings["schedule"]["name"])
