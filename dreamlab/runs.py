"""A run directory is an object that can be read back.

    config.yaml     the resolved settings          card.json      versions, hardware, seeds, command, photos
    metrics.jsonl   one JSON object per update     status.json    running | finished | interrupted | failed
    evaluations.jsonl probes.jsonl                 what was measured at some updates, 0 being the untouched model
    eval/           the pictures of each moment and their scores      verdict.json   what to make of it
    samples/        update-000150/0000.png ...     grid.png       before and after, side by side
    model/          the tuned diffusers folder     resume/        update-000150.ckpt: everything to go on exactly
    snapshots/      update-000150/: fp16, see snapshots.py         .lock: held by the process that trains
Of an adapter and of new words, model/ is such a snapshot, in float32.

Files appear whole or not at all: see whole.py.
"""

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dreamlab.errors import UserError
from dreamlab.models import Family
from dreamlab.off_gpu import all_off_gpu
from dreamlab.secrets import without_secrets
from dreamlab.whole import discard, written_whole

RECORDED_PACKAGES = ("dreamlab", "torch", "diffusers", "transformers", "pytorch-lightning", "hydra-core", "numpy")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cache_dir(given: str | None) -> Path:
    """Where class images are kept between runs: the setting, $DREAMLAB_CACHE, or dreamlab below the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dreamlab"
    return Path(given or os.environ.get("DREAMLAB_CACHE") or default).expanduser()


def environment() -> dict[str, Any]:
    """Versions, hardware and the command: what a run card says besides the settings."""
    import torch

    from dreamlab.command_lines import as_typed

    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "command": as_typed([without_secrets(word) for word in sys.argv]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class JsonLines:
    """A file of one JSON object per line, each about an `update`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add one line; what is no finite number becomes null, which every reader of JSON knows."""
        told = {key: None if _is_odd(value) else value for key, value in row.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")
        except OSError as error:
            error.filename = str(self.path)  # a full disk names none
            raise

    def rows(self) -> list[dict[str, Any]]:
        """Every whole line; one cut short by a kill is passed over."""
        rows = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return rows

    def rewind(self, update: int) -> None:
        """Drop the lines after `update`, which a resumed run will write again."""
        rows = [row for row in self.rows() if row["update"] <= update]
        with written_whole(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class RunDirectory:
    """The files of one run below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.card = path / "card.json"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = JsonLines(path / "evaluations.jsonl")
        self.probes = JsonLines(path / "probes.jsonl")
        self.verdict = path / "verdict.json"
        self.evaluated = path / "eval"
        self.samples = path / "samples"
        self.grid = path / "grid.png"
        self.model = path / "model"
        self.snapshots = path / "snapshots"
        self.lock = path / ".lock"

    def state(self, update: int) -> Path:
        """Where the resume state of an update lies."""
        return self.path / "resume" / f"update-{update:06d}.ckpt"

    def states(self) -> list[Path]:
        """The resume states that are there, the newest first; last.ckpt is what earlier versions wrote."""
        old = self.path / "resume" / "last.ckpt"
        return [*numbered(self.path / "resume"), *([old] if old.is_file() else [])]

    @property
    def checkpoint(self) -> Path:
        """The newest resume state; a path of nothing where there is none."""
        return next(iter(self.states()), self.state(0))

    def status(self) -> dict[str, Any]:
        """The content of status.json, empty for a directory that is no run yet; UserError where it is unreadable."""
        file = self.path / "status.json"
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file} is not readable ({error}). Move {self.path} away, or choose another name."
            ) from None

    def has_failed(self) -> bool:
        """Whether its last training ended in an error."""
        return self.status().get("state") == "failed"

    def set_status(self, state: str, **details: Any) -> None:
        """Replace status.json."""
        write_json(self.path / "status.json", {"state": state, **details})

    @contextlib.contextmanager
    def guarded(self, signature: str, update: int) -> Iterator[None]:
        """Claim the directory for a run; whatever ends the block early is written to status.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.set_status("running", update=update, signature=signature, pid=os.getpid())
        try:
            yield
        except BaseException as error:
            if self.status().get("state") == "finished":  # the training went on for others
                raise
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            reached = self.status().get("update", update)
            message = without_secrets(f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):  # on a full disk the first error is the one to tell
                self.set_status(
                    "interrupted" if stopped else "failed", update=reached, signature=signature, message=message
                )
            raise

    def read_card(self) -> dict[str, Any]:
        """The content of card.json, empty where there is none."""
        return dict(json.loads(self.card.read_text(encoding="utf-8"))) if self.card.is_file() else {}

    def read_config(self) -> dict[str, Any]:
        """The settings in config.yaml as plain containers, empty where there are none."""
        if not self.config.is_file():
            return {}
        settings: Any = OmegaConf.to_container(OmegaConf.load(self.config))
        return dict(settings)

    def save_model(self, model: Family) -> None:
        """Write the tuned pipeline as a diffusers folder."""
        with written_whole(self.model) as temporary, all_off_gpu(model.parts().values()):
            model.pipeline().save_pretrained(temporary)

    def clear(self) -> None:
        """Remove what an earlier run left here; status.json, by which it is known for a run, goes last."""
        if self.path.is_dir():
            files = [file for file in self.path.iterdir() if file not in (self.lock, self.path / "status.json")]
            for file in (*files, self.path / "status.json"):
                discard(file)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        JsonLines(self.metrics).append(row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl."""
        return JsonLines(self.metrics).rows()

    def rewind(self, update: int) -> None:
        """Forget the numbers after `update`, which a resumed run will write again."""
        for lines in (JsonLines(self.metrics), self.evaluations, self.probes):
            lines.rewind(update)


def numbered(folder: Path) -> list[Path]:
    """What is called update-<number> in a folder, the highest number first."""
    return sorted(folder.glob("update-*"), key=update_of, reverse=True)


def update_of(path: Path) -> int:
    """The number in a name such as update-000150.ckpt; -1 where there is none."""
    digits = path.name.removeprefix("update-").split(".")[0]
    return int(digits) if digits.isdecimal() else -1


def run_of(given: str) -> RunDirectory | None:
    """The run that `given` is, or is a snapshot of; None for any other model."""
    folder = Path(given).expanduser().resolve()
    candidates = (folder, folder.parent.parent) if folder.parent.name == "snapshots" else (folder,)
    return next((RunDirectory(path) for path in candidates if (path / "status.json").is_file()), None)


def source_of(given: str) -> str:
    """The model of a run's directory, or `given` itself where it is no run."""
    folder = Path(given).expanduser()
    if not (folder / "status.json").is_file():
        return given
    run = RunDirectory(folder)
    if run.model.is_dir():
        return str(run.model)
    names = [path.name for path in numbered(run.snapshots)]
    remedy = "Resume it by its command"
    if names:
        listing = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        remedy += f", or name a snapshot of it: run={run.snapshots / names[0]}{listing}"
    raise UserError(f"The run {given} holds no model yet: it has not finished. {remedy}.")
