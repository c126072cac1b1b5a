"""The pictures of many runs by recipe and update: what the untouched model drew, and every run after so many updates.

A row is a recipe, the settings that differ apart from `steps`; a column is an update. So runs that differ in lr and
steps alone give the familiar grid of lr x steps. One prompt and seed is shown at a time. Pictures that are the same
file, as the untouched model's mostly are, are held once. Called by compare.py.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamlab.evidence import Evidence
from dreamlab.members import Member
from dreamlab.photos import list_images
from dreamlab.pictures import read_settings
from dreamlab.report import sample_updates
from dreamlab.thumbnails import thumbnails

SIZES_PX = ((600, 160), (6_000, 96), (10**9, 64))  # up to so many pictures: the side of each
MAX_COLUMNS = 10
Shot = tuple[str, str]  # prompt, with {token} for the identifier, and seed


@dataclass(frozen=True)
class ContactSheet:
    """Plain values for the page's script: cells hold places in `pictures`, by update and then by shot."""

    shots: list[Shot]
    updates: list[int]
    rows: list[dict[str, Any]]  # label, members, cells
    pictures: list[str]
    left_out: int  # columns

    def as_json(self) -> dict[str, Any]:
        """What the script reads."""
        shots = [{"prompt": prompt, "seed": seed} for prompt, seed in self.shots]
        return {"shots": shots, "updates": self.updates, "rows": self.rows, "pictures": self.pictures}


@dataclass(frozen=True)
class _Recipe:
    """A row: the runs that share it, and their files by update and shot."""

    members: list[int]
    cells: dict[int, dict[Shot, Path]]


def contact_sheet(members: Sequence[Member]) -> ContactSheet:
    """The sheet of all members, rows in order of their settings."""
    drawn = {member.number: pictures_of(member.evidence) for member in members}
    count = Counter(update for moments in drawn.values() for update in moments if update)
    ends = {member.evidence.status.get("update") for member in members}
    picked = sorted(count, key=lambda update: (update in ends, count[update]), reverse=True)[: MAX_COLUMNS - 1]
    updates = [0] * any(0 in moments for moments in drawn.values()) + sorted(picked)
    shots = list(dict.fromkeys(shot for moments in drawn.values() for shown in moments.values() for shot in shown))
    rows: dict[str, _Recipe] = {}
    for member in sorted((member for member in members if drawn[member.number]), key=_order):
        recipe = {key: value for key, value in member.settings.items() if key != "steps"}
        label = ", ".join(f"{key} {'–' if value is None else value}" for key, value in recipe.items()) or "all runs"
        row = rows.setdefault(label, _Recipe([], {}))
        row.members.append(member.number)
        for update, shown in drawn[member.number].items():  # a run that ends there goes before one that passed by
            if update in updates and (update not in row.cells or member.evidence.status.get("update") == update):
                row.cells[update] = shown
    places, pictures = _held_once(
        path for row in rows.values() for shown in row.cells.values() for path in shown.values()
    )
    told = [
        {"label": label, "members": row.members,
         "cells": {u: [places.get(shown.get(shot), -1) for shot in shots] for u, shown in row.cells.items()}}
        for label, row in rows.items()
    ]  # fmt: skip
    tokens = list({str(member.evidence.config.get("token")) for member in members if drawn[member.number]})
    if len(tokens) == 1:
        shots = [(prompt.replace("{token}", tokens[0]), seed) for prompt, seed in shots]
    return ContactSheet(shots, updates, told, pictures, len(count) - len(picked))


def _order(member: Member) -> list[tuple[int, float, str]]:
    """Numbers as numbers, lr first; then by name."""
    values = sorted(member.settings.items(), key=lambda item: item[0] != "lr")
    return [(0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value)) for _, value in values]


def pictures_of(evidence: Evidence) -> dict[int, dict[Shot, Path]]:
    """The files of each moment by shot: those of eval/ or, where there are none, of samples/."""
    moments = {update: evidence.shots(update) for update in evidence.updates}
    named = next((shots for shots in reversed(moments.values()) if shots), [])
    found: dict[int, dict[Shot, Path]] = {}
    for update, shots in moments.items():
        folder = evidence.run.evaluated / f"update-{update:06d}"
        found[update] = {_shot(shot, shot.get("token")): folder / shot["path"].name for shot in shots or named}
    if any(found.values()):
        return {update: shown for update, shown in found.items() if shown}
    run, token = evidence.run, evidence.config.get("token")
    for update in sample_updates(run) if run.samples.is_dir() else []:
        files = list_images(run.samples / f"update-{update:06d}")
        found[update] = {_shot(read_settings(file), token): file for file in files}
    return found


def _shot(about: Mapping[str, Any], token: Any) -> Shot:
    words = ["{token}" if word == token else word for word in str(about.get("prompt", "?")).split()]
    return " ".join(words), str(about.get("seed", "?"))


def _held_once(paths: Iterable[Path]) -> tuple[dict[Path | None, int], list[str]]:
    """Where each readable file lies in the list of thumbnails, and that list."""
    firsts: dict[str, Path] = {}
    digests: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        if path.is_file():
            digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
            firsts.setdefault(digests[path], path)
    side_px = next(side for most, side in SIZES_PX if len(firsts) <= most)
    sources = dict(zip(firsts, thumbnails(list(firsts.values()), side_px), strict=True))
    places = {digest: place for place, digest in enumerate(digest for digest, source in sources.items() if source)}
    return (
        {path: places[digest] for path, digest in digests.items() if digest in places},
        [source for source in sources.values() if source],
    )
