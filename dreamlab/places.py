"""Files and folders as people type them: a text that can be none is refused before anything is done with it."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from dreamlab.errors import UserError

# The settings, of any command, that name a file or folder: each alone, or a list of them
KEYS = {
    "instance_dir", "class_dir", "concepts", "source", "vae", "config", "resume", "out", "name", "cache_dir",
    "run", "runs", "folder", "base", "encoder", "dino", "clip",
}  # fmt: skip


def path_given(key: str, text: str) -> Path:
    """A path as a person types it, from the home sign on; UserError where no file could be called so."""
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError("it holds a null character")
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:  # there is no such home, or the text has half a character
        raise UserError(f"{key}={text!r} is no name of a file or folder: {error}. Give another.") from None


def check_places(settings: Any, prefix: str = "") -> None:
    """Look at each path of a command's settings, a dataclass, and of the groups in it; UserError at the first."""
    for item in dataclasses.fields(settings):
        value, key = getattr(settings, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            check_places(value, f"{key}.")
        elif item.name in KEYS:
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    path_given(key, text)
