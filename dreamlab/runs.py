"""A run directory is an object that can be read back.

    config.yaml     the resolved settings          card.json      versions, hardware, seeds, command, photos
    metrics.jsonl   one JSON object per update     status.json    running | finished | interrupted | failed
    samples/        update-000150/0000.png ...     grid.png       before and after, side by side
    model/          the tuned diffusers folder     resume/        last.ckpt: everything to go on exactly

Files appear whole or not at all: each is written under a temporary name and renamed.
"""

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dreamlab.errors import UserError
from dreamlab.models import Family

RECORDED_PACKAGES = ("dreamlab", "torch", "diffusers", "transformers", "pytorch-lightning", "hydra-core", "numpy")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder at; it takes the name `path` when the block ends without error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def without_secrets(text: str) -> str:
    """`text` with the value of every environment variable that holds a key, token or password masked."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
            text = text.replace(value, "***")
    return text


def cache_dir(given: str | None) -> Path:
    """Where class images are kept between runs: the setting, $DREAMLAB_CACHE, or dreamlab below the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dreamlab"
    return Path(given or os.environ.get("DREAMLAB_CACHE") or default).expanduser()


def environment() -> dict[str, Any]:
    """Versions, hardware and the command: what a run card says besides the settings."""
    import torch

    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "command": without_secrets(" ".join(sys.argv)),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class RunDirectory:
    """The files of one run below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.card = path / "card.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.grid = path / "grid.png"
        self.model = path / "model"
        self.checkpoint = path / "resume" / "last.ckpt"

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
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            reached = self.status().get("update", update)
            message = without_secrets(f"{type(error).__name__}: {error}")
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
        with written_whole(self.model) as temporary:
            model.pipeline().save_pretrained(temporary)

    def clear(self) -> None:
        """Remove what an earlier run left here, and nothing else."""
        if self.path.is_dir() and any(self.path.iterdir()) and not self.status():
            raise UserError(f"{self.path} exists and is no run of dreamlab. Choose another name=... or out=...")
        shutil.rmtree(self.path, ignore_errors=True)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; one cut short by a kill is passed over."""
        rows = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return rows

    def rewind_metrics(self, update: int) -> None:
        """Drop the lines after `update`, which a resumed run will write again."""
        rows = [row for row in self.read_metrics() if row["update"] <= update]
        with written_whole(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def source_of(run: str) -> str:
    """The model of a run's directory, or `run` itself where it is no run."""
    folder = Path(run).expanduser()
    if not (folder / "status.json").is_file():
        return run
    if not (folder / "model").is_dir():
        raise UserError(f"The run {run} holds no model yet: it has not finished. Resume it by its command.")
    return str(folder / "model")
