"""Runs that are one training: under a schedule that ignores `steps`, the longest contains the shorter ones.

Each is bit-identical to what it would be alone, since every random number is a function of seed, update and sample.
The same holds for runs that differ only in what is shown or measured. Called by train.py and plan.py.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamlab.config import signature
from dreamlab.moments import evaluated_updates, spaced
from dreamlab.progress import console
from dreamlab.resume import Start, settings_that_matter
from dreamlab.runlog import RunLog
from dreamlab.runs import JsonLines, RunDirectory, numbered, update_of
from dreamlab.schedules import ignores_steps
from dreamlab.schema import Train
from dreamlab.subject import Subject
from dreamlab.whole import link_whole


def training_key(config: Train, subject: Subject) -> str:
    """The same for runs that one training can hold, which are as long as the longest of them."""
    values: dict[str, Any] = settings_that_matter(config, subject.digest)
    if ignores_steps(config.schedule.name):
        del values["steps"]
    # early_stop ends a run where its own moments say so
    if config.early_stop != "none" or config.resume not in ("auto", "never"):
        values["alone"] = signature(config, subject.digest), config.resume
    values |= {"photos_in": config.instance_dir, "device": config.device, "resume": config.resume}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def take_over(config: Train, log: RunLog, start: Start) -> None:
    """Give a run what another one of the same training has already: numbers, pictures and snapshots up to the start."""
    if start.checkpoint is None or config.resume != "auto":
        return
    donor = RunDirectory(start.checkpoint.parent.parent)
    if donor.path == log.run.path or len(log.run.read_metrics()) >= start.update:
        return
    log.run.rewind(-1)
    theirs = donor.read_config()
    measured, probed, sampled = ({update for update in updates if update <= start.update} for updates in (
        {0} | evaluated_updates(config.eval, config.steps), {0} | spaced(config.steps, config.eval.probes),
        {0} | {*range(0, start.update + 1, config.sample_every or start.update + 1)},
    ))  # fmt: skip
    rows = _copy_rows(donor.metrics, log.run.metrics, lambda update: update <= start.update)
    if _without_moments(theirs.get("eval")) == _without_moments(vars(config.eval)):
        rows += _copy_rows(donor.evaluations.path, log.run.evaluations.path, lambda u: u in measured)
        rows += _copy_rows(donor.probes.path, log.run.probes.path, lambda update: update in probed)
        _copy_folders(donor.evaluated, log.run.evaluated, measured)
        _copy_folders(donor.snapshots, log.run.snapshots, measured - {0, config.steps})
    if all(theirs.get(key) == _plain(config, key) for key in ("sampling", "prompts")):
        _copy_folders(donor.samples, log.run.samples, sampled)
    _tell_holes(log, measured, start.update)
    if log.logger is not None:
        for row in sorted(rows, key=lambda row: row["update"]):
            numbers = {key: value for key, value in row.items() if key != "update" and value is not None}
            log.logger.log_metrics(numbers, step=row["update"])


def _plain(config: Train, key: str) -> Any:
    value = getattr(config, key)
    return vars(value) if hasattr(value, "__dict__") else value


def _without_moments(settings: Any) -> dict[str, Any]:
    """What decides a measured number, whenever it is measured."""
    return {k: v for k, v in dict(settings or {}).items() if k not in ("kind", "moments", "at", "probes", "batch_size")}


def _copy_rows(source: Path, target: Path, is_wanted: Callable[[int], bool]) -> list[dict[str, Any]]:
    rows = [row for row in JsonLines(source).rows() if is_wanted(row["update"])]
    for row in rows:
        JsonLines(target).append(row)
    return rows


def _copy_folders(source: Path, target: Path, updates: set[int]) -> None:
    """The folders of some updates; their files are links, which cost no space."""
    for folder in numbered(source):
        if update_of(folder) in updates and not (target / folder.name).exists():
            shutil.copytree(folder, target / folder.name, copy_function=lambda a, b: link_whole(Path(a), Path(b)))


def _tell_holes(log: RunLog, wanted: set[int], until: int) -> None:
    known = {row["update"] for row in log.run.evaluations.rows()}
    holes = sorted(update for update in wanted - known if 0 < update <= until)
    if holes:
        told = ", ".join(map(str, holes))
        console.print(
            f"{log.run.path.name} goes on from another run of the sweep, which was not measured at update {told}:"
            " these moments are missing.", markup=False,
        )  # fmt: skip
