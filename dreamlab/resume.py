"""Where a run begins: in a new directory, at its own last state, at another run's, or nowhere since it is finished.

A run's directory is named after its signature, so the same command finds the same run again. A state is accepted only
if everything that decides the weights is the same; `steps` may differ where the schedule does not depend on it.
"""

import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dreamlab.config import WITHOUT_EFFECT, signature
from dreamlab.errors import UserError
from dreamlab.runs import RunDirectory, update_of
from dreamlab.schedules import ignores_steps
from dreamlab.schema import Train
from dreamlab.sealed import is_intact
from dreamlab.subject import Subject

# Beside WITHOUT_EFFECT: what changes pictures and numbers shown, but no weight
ONLY_SHOWN = ("prompts", "sampling", "sample_every", "eval", "early_stop")
# What the model and adapter groups recommend decides nothing itself: the settings that take it are compared
RECOMMENDED = (
    "lr", "adapter_lr", "inversion_lr", "steps", "batch_size", "precision", "resolution", "num_prior_images",
    "guidance", "prompts", "eval_prompts", "dino", "clip", "sampler", "eval_sampler", "train",
)  # fmt: skip

PASSED_OVER = {"model": RECOMMENDED, "adapter": ("lr",)}  # of the groups that recommend


@dataclass(frozen=True)
class Start:
    """Where training starts from; `checkpoint` is None for a fresh run."""

    signature: str
    checkpoint: Path | None = None
    update: int = 0
    is_finished: bool = False


def settings_that_matter(config: Train, photos_digest: str) -> dict[str, Any]:
    """What a checkpoint remembers of its run: every setting that decides the weights, and the photos' hash."""
    values = {
        k: v
        for k, v in asdict(config).items()
        if k not in (*WITHOUT_EFFECT, *ONLY_SHOWN, "instance_dir", "class_dir", "concepts")
    }
    return {**values, "photos": photos_digest}


def folder_of(config: Train, subject: Subject) -> Path:
    """The run's directory: its name, or the subjects and the signature."""
    names = "-".join(f"{concept.token}-{concept.class_word}" for concept in subject.concepts)
    slug = re.sub(r"\W+", "-", names)[:80]
    return Path(config.out).expanduser() / (config.name or f"{slug}-{signature(config, subject.digest)}")


class Opened(NamedTuple):
    """A run before it is trained: its checked settings, its directory, and what is known of its start."""

    config: Train
    subject: Subject
    run: RunDirectory
    start: Start


def open_run(config: Train, subject: Subject, joins: bool = False) -> Opened:
    """The run's directory, and whether it is finished; UserError where the directory holds another run.

    A process that `joins` others changes nothing.
    """
    own = signature(config, subject.digest)
    run = RunDirectory(folder_of(config, subject))
    if config.resume == "never" and not joins:
        run.clear()
    status = run.status() if config.resume == "auto" else {}
    if status and status.get("signature") != own:
        raise UserError(
            f"{run.path} holds a run with other settings or photos. Choose another name=..., or replace that run"
            " with resume=never."
        )
    return Opened(config, subject, run, Start(own, is_finished=status.get("state") == "finished"))


def where_to_start(unfinished: Sequence[Opened], runs: Sequence[RunDirectory]) -> Start:
    """Where one training of all `unfinished` runs, the shortest first, begins.

    At the newest state of any of `runs` that lies within the shortest, or at update 0; at the state that resume=<path>
    names, for a run that has it.
    """
    longest, own = unfinished[-1], unfinished[-1].start.signature
    if longest.config.resume == "never":
        return Start(own)
    if longest.config.resume != "auto":
        return _continue(longest.config, longest.subject, own, _states_at(longest.config.resume))
    last = unfinished[0].config.steps
    states = {state for run in runs for state in run.states() if update_of(state) <= last}
    newest = sorted(states, key=update_of, reverse=True)
    return _continue(longest.config, longest.subject, own, newest) if newest else Start(own)


def _states_at(given: str) -> list[Path]:
    """The states that `resume=<path>` means, the newest first."""
    path = Path(given).expanduser()
    files = RunDirectory(path).states() if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise UserError(f"resume={given}: there is no resume state. Give auto, never, a run directory or a .ckpt file.")
    return files


def _newest_readable(files: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """The first of `files` that can be read, and what it says of its run; those passed over are named."""
    broken = []
    for file in files:
        try:
            about = _read(file)
        except Exception as error:  # torch raises a different class for each way a file can be broken
            broken.append(f"{file} is no readable resume state of dreamlab ({type(error).__name__})")
            continue
        if broken:
            print(f"dreamlab: {'; '.join(broken)}: going on from update {about['update']}.", file=sys.stderr)
        return file, about
    raise UserError(f"{'; '.join(broken)}. Start over: resume=never.")


def _read(file: Path) -> dict[str, Any]:
    """The part of a state that says which run it is of; only tensors and plain containers are ever unpickled."""
    about = torch.load(file, map_location="meta", weights_only=True, mmap=True)["dreamlab"]
    if not is_intact(file):  # a hole in the middle would only show in the weights
        raise zipfile.BadZipFile
    settings = {key: dict(value) if key in PASSED_OVER else value for key, value in about["settings"].items()}
    if not PASSED_OVER.keys() <= settings.keys():
        raise KeyError(*PASSED_OVER)
    return {"update": int(about["update"]), "settings": settings}


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} ({old} there, {new} now)"


def _continue(config: Train, subject: Subject, own: str, files: Sequence[Path]) -> Start:
    """A start at the newest of the states; UserError where it belongs to a training that would differ."""
    file, about = _newest_readable(files)
    now = settings_that_matter(config, subject.digest)
    before = dict(about["settings"])
    if ignores_steps(config.schedule.name):
        before["steps"] = now["steps"]
    for settings in (before, now):
        for group, passed_over in PASSED_OVER.items():
            settings[group] = {k: v for k, v in settings[group].items() if k not in passed_over}
    changed = list(_differences(before, now))
    if changed:
        raise UserError(
            f"{file} cannot be continued with these settings: {'; '.join(changed)}. Start over: resume=never."
        )
    if about["update"] > config.steps:
        raise UserError(f"{file} is at update {about['update']} already, past steps={config.steps}.")
    return Start(own, file, about["update"])
