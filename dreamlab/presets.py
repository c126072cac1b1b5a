"""What a preset changes, told before the run: experiment=tutorial_exact prints each quirk beside what it replaces.

A preset is compared with the preset it builds on, or with the same command without any. Called by train.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf
from rich.table import Table

from dreamlab.config import WITHOUT_EFFECT, conf_dir
from dreamlab.progress import console

TOLD_ANYWAY = ("instance_dir", "class_word", "prompts")  # what the person knows, or the grid shows


def parent_of(preset: str) -> str | None:
    """The preset that another one builds on: the first plain entry of its defaults list."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "experiment" / f"{preset}.yaml"))
    return next((entry for entry in settings.get("defaults", []) if isinstance(entry, str) and entry != "_self_"), None)


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting in dotted form."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(preset: str, overrides: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Setting, its value under the preset, and without it, for a command line's other `overrides`."""
    others = [word for word in overrides if word.lstrip("+").split("=")[0] != "experiment"]
    parent = parent_of(preset)
    chosen = [[*others, f"experiment={preset}"], [*others, *([f"experiment={parent}"] if parent else [])]]
    composed: Any = [OmegaConf.to_container(compose("train", words), resolve=True) for words in chosen]
    with_it, without = (dict(leaves(settings)) for settings in composed)
    ignored = (*WITHOUT_EFFECT, *TOLD_ANYWAY)
    return [
        (key, value, without.get(key)) for key, value in with_it.items()
        if value != without.get(key) and not key.split(".")[-1].startswith("_") and key.split(".")[0] not in ignored
    ]  # fmt: skip


def tell_differences(preset: str, overrides: Sequence[str]) -> None:
    """Print what a preset changes, where it changes anything."""
    found = differences(preset, overrides)
    if not found:
        return
    parent = parent_of(preset)
    table = Table(title=f"experiment={preset}", title_justify="left")
    for heading in ("setting", "here", f"experiment={parent}" if parent else "without it"):
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)
