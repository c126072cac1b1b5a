"""What a sweep will do, before it does it: its members, and the trainings that hold them (prefixes.py).

The plan lies in the sweep's folder as plan.json. Of the jobs that a launcher starts, one for each member, the first of
each training trains for all of them and the others return at once; so any launcher shares. Called by sweeps.py.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from dreamlab.errors import UserError
from dreamlab.runs import RunDirectory, update_of, write_json
from dreamlab.schema import Train

PLAN = "plan.json"


@dataclass(frozen=True)
class Member:
    """One run of a sweep: the job that Hydra gives it, its settings as composed, and where it lies."""

    number: int
    settings: dict[str, Any]
    folder: str | None  # None: it can't be trained, as its job will tell
    training: str  # equal for members of one training
    words: list[str]  # the overrides that only some members have

    @property
    def steps(self) -> int:
        """Its last update."""
        return int(self.settings["steps"])

    @cached_property
    def end(self) -> tuple[str, int]:
        """How its directory says it ended, empty where there is none; and the update it can go on from."""
        if self.folder is None or self.settings["resume"] == "never":
            return "", 0
        run = RunDirectory(Path(self.folder))
        state = str(run.status().get("state", ""))
        return state, self.steps if state == "finished" else max(map(update_of, run.states()), default=0)


@dataclass(frozen=True)
class Plan:
    """The members of a sweep, in the order of their jobs."""

    members: list[Member]

    def trainings(self) -> list[list[Member]]:
        """Members that are trained together, in the order in which they begin."""
        found: dict[str, list[Member]] = {}
        for member in self.members:
            if member.folder is not None:
                found.setdefault(member.training, []).append(member)
        return list(found.values())

    def of_job(self, number: int) -> list[Member]:
        """Whom a job trains: all of its training if it is the first of them, else nobody; itself if it can't be."""
        own = next(member for member in self.members if member.number == number)
        if own.folder is None:
            return [own]
        together = next(training for training in self.trainings() if own in training)
        return together if together[0] is own else []

    def save(self, folder: Path) -> None:
        """Write plan.json into a sweep's folder."""
        write_json(folder / PLAN, [dataclasses.asdict(member) for member in self.members])


def read_plan(folder: Path) -> Plan | None:
    """The plan of the sweep in `folder`; None where there is none, as in a search."""
    file = folder / PLAN
    if not file.is_file():
        return None
    return Plan([Member(**row) for row in json.loads(file.read_text(encoding="utf-8"))])


def make_plan(jobs: Sequence[Sequence[str]]) -> Plan:
    """The plan of a sweep from the overrides of its jobs; Hydra must be initialised."""
    from dreamlab.secrets import refuse_secrets

    common = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    members = []
    for number, words in enumerate(jobs):
        config: Any = OmegaConf.to_object(compose("train", list(words)))
        own = [word for word in words if word not in common]
        refuse_secrets(config)  # the plan is a file, too
        try:
            members.append(_member(number, config, own))
        except UserError:
            members.append(Member(number, dataclasses.asdict(config), None, "", own))
    return Plan(members)


def plan_of(config: Train) -> Plan:
    """The plan of a lone run; UserError where it can't be trained."""
    return Plan([_member(0, config, [])])


def _member(number: int, config: Train, words: list[str]) -> Member:
    from dreamlab.checks import check
    from dreamlab.prefixes import training_key
    from dreamlab.resume import folder_of

    settings = dataclasses.asdict(config)
    config, subject = check(config)
    settings["token"] = config.token  # chosen by now, so that jobs in other processes need not choose
    return Member(number, settings, str(folder_of(config, subject)), training_key(config, subject), words)


def settings_of(member: Member) -> Train:
    """The member's settings as its job was given them."""
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Train), member.settings))
    return config


def updates_to_do(training: Sequence[Member]) -> int:
    """Updates that one training of these members takes, from the newest state that all unfinished ones can use."""
    unfinished = [member.steps for member in training if member.end[0] != "finished"]
    if not unfinished:
        return 0
    return max(unfinished) - max((m.end[1] for m in training if m.end[1] <= min(unfinished)), default=0)


def pace(folder: Path, settings: Mapping[str, Any]) -> tuple[float, float] | None:
    """Seconds for an update, and for a run besides, in the newest finished run below `folder` of this kind."""
    statuses = sorted(folder.glob("*/status.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in statuses[:50]:
        run = RunDirectory(file.parent)
        status, theirs = run.status(), run.read_config()
        rows = run.read_metrics()
        if status.get("state") != "finished" or not rows or not all(
            _leaf(theirs, key) == _leaf(settings, key) for key in ALIKE
        ):  # fmt: skip
            continue
        halves = 2 if theirs["prior_weight"] > 0 else 1
        images = theirs["batch_size"] * theirs["accumulate"] * theirs["trainer"]["devices"] * halves
        rates = sorted(row["perf/images_per_s"] for row in rows)
        update_s = images / rates[len(rates) // 2]
        return update_s, max(0.0, status.get("seconds", 0) - update_s * len(rows))
    return None


ALIKE = (
    "model.family", "model.source", "resolution", "batch_size", "accumulate", "precision", "device", "adapter.train",
    "adapter.kind", "adapter.rank", "eval.kind",
)  # fmt: skip


def _leaf(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value.get(name, {})
    return value
