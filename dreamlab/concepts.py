"""Several subjects in one run: the tutorial's concepts_list.json, or the same in YAML.

Each entry is what one subject needs. The keys are the tutorial's (`instance_data_dir`, `class_data_dir`) or ours; a
relative folder is looked for from where the command runs, then beside the file. Called by subject.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml

from dreamlab.errors import UserError, did_you_mean
from dreamlab.places import path_given

ALIASES = {"instance_data_dir": "instance_dir", "class_data_dir": "class_dir"}
MOST_BYTES = 2**20  # thousands of subjects; a YAML of many megabytes is read for minutes
KEYS = ("instance_dir", "instance_prompt", "class_prompt", "class_dir", "token", "class_word", "repeats")

_BRIEF = Repr()  # a few lines of YAML may be lists in lists that take gigabytes to write out
_BRIEF.maxlevel = 2


@dataclass(frozen=True)
class Given:
    """One subject as a person describes it; what is None is derived."""

    instance_dir: str
    instance_prompt: str | None = None
    class_prompt: str | None = None
    class_dir: str | None = None
    token: str | None = None
    class_word: str | None = None
    repeats: int = 1  # how often each photo stands in a pass over the photos


def read_concepts(file: str) -> list[Given]:
    """The subjects of a JSON or YAML file; UserError for anything that is not such a list."""
    path = path_given("concepts", file)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is no file")
        if path.stat().st_size > MOST_BYTES:
            raise OSError(f"it has more than {MOST_BYTES} bytes")
        entries = yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML; Windows' editors add a mark
    except FileNotFoundError:
        raise UserError(f"concepts={file}: there is no such file. Give a JSON or YAML list of subjects.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"concepts={file} cannot be read ({error}). Give a JSON or YAML list of subjects.") from None
    except Exception as error:  # PyYAML raises its own, Python's for 2001-99-99 and 0x_, and whatever deep lists raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"concepts={file} is neither JSON nor YAML: {reason}") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"concepts={file} holds no list of subjects. Each is an object with the keys {', '.join(KEYS)}."
        )
    return [_given(entry, f"concepts={file}, subject {number}", path.parent) for number, entry in enumerate(entries, 1)]


def _given(entry: Any, where: str, beside: Path) -> Given:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_BRIEF.repr(entry)}, no object with keys. Its keys: {', '.join(KEYS)}.")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        ours = ALIASES.get(str(key), str(key))
        if ours not in KEYS:
            raise UserError(f"{where} has a key {_BRIEF.repr(key)}.{did_you_mean(str(key), (*KEYS, *ALIASES))}")
        wanted = int if ours == "repeats" else str
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            kind = "a whole number" if wanted is int else "text"
            raise UserError(f"{where}: {key} is {_BRIEF.repr(value)}; it must be {kind}.")
        if value not in (None, ""):
            values[ours] = value
    if "instance_dir" not in values:
        raise UserError(f"{where} has no instance_dir (or instance_data_dir): the folder of its photos.")
    if values.get("repeats", 1) < 1:
        raise UserError(f"{where}: repeats is {values['repeats']}; give a whole number, 1 or more.")
    for key in ("instance_dir", "class_dir"):
        if key in values:
            values[key] = _located(path_given(f"{where}: {key}", values[key]), beside)
    return _with_words(Given(**values), where)


def _located(path: Path, beside: Path) -> str:
    return str(beside / path) if not path.is_dir() and (beside / path).is_dir() else str(path)


def _with_words(given: Given, where: str) -> Given:
    """The same with token and class word, read off the two prompts where they are not given.

    "photo of zwx dog" beside "photo of a dog": the one word that only the first has is the token, what follows it the
    class word.
    """
    if given.token and given.class_word:
        return given
    words, others = (given.instance_prompt or "").split(), set((given.class_prompt or "").split())
    only = [word for word in words if word not in others]
    after = " ".join(words[words.index(only[0]) + 1 :]) if len(only) == 1 else ""
    if given.class_prompt and after and re.search(rf"\b{re.escape(after)}\b", given.class_prompt):
        token = given.token or only[0]
        return Given(**{**vars(given), "token": token, "class_word": given.class_word or after})
    raise UserError(
        f"{where}: token and class_word can't be read off its prompts ({given.instance_prompt!r} beside"
        f" {given.class_prompt!r}). Add both, such as token: zwx and class_word: dog."
    )
