"""A run's pictures in rows and columns: one shot a row, the untouched model and the moments after it as columns.

Beside a picture stand its scores and, where the judge found one, the training photo nearest to it; copies are flagged.
Called by page.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamlab.evidence import Evidence, is_number
from dreamlab.photos import list_images
from dreamlab.pictures import read_settings
from dreamlab.report import sample_updates
from dreamlab.thumbnails import thumbnail, thumbnails

SIDE_PX = 160
MAX_COLUMNS = 6
MAX_ROWS = 60
KINDS = {"near": "subject, near to its photos", "far": "subject, elsewhere", "class": "its class",
         "unrelated": "unrelated"}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One thumbnail with what is said beside it; `src` is None where the file is missing."""

    src: str | None
    link: str  # the file, relative to the page
    label: str
    alt: str
    badges: list[tuple[str, str, str]] = field(default_factory=list)  # words, class, explanation
    photo: str = ""  # CSS class of the nearest photo
    photo_about: str = ""


@dataclass(frozen=True)
class Row:
    """The pictures of one shot, None at a moment without it."""

    prompt: str
    about: str
    pictures: list[Picture | None]


@dataclass(frozen=True)
class Gallery:
    """Rows of one table, with a sentence about rows and columns that are left out."""

    rows: list[Row]
    left_out: str = ""


@dataclass(frozen=True)
class Photo:
    """A training or held-out photo as the judge saw it."""

    name: str  # CSS class
    label: str
    src: str


def photos_of(evidence: Evidence) -> list[Photo]:
    """The photos below eval/photos that can be read."""
    folder = evidence.run.evaluated / "photos"
    found = []
    for path in list_images(folder) if folder.is_dir() else []:
        concept, *_, number = path.stem.split("-")
        is_held_out = "-held-" in path.stem
        source = thumbnail(path, SIDE_PX)
        if source and concept.isdecimal() and number.isdecimal():
            name = f"photo-{int(concept)}{'-held' * is_held_out}-{int(number)}"
            found.append(Photo(name, f"{'held-out' if is_held_out else 'training'} photo {int(number)}", source))
    return found


def picked(updates: Sequence[int], kept: int | None, columns: int = MAX_COLUMNS) -> list[int]:
    """At most `columns` of the updates: the first, the kept, the last, and others evenly between them."""
    wanted = {0, len(updates) - 1, *([updates.index(kept)] if kept in updates else [])}
    for place in range(columns):
        if len(wanted) >= min(columns, len(updates)):
            break
        wanted.add(round(place * (len(updates) - 1) / max(1, columns - 1)))
    return [updates[index] for index in sorted(wanted) if 0 <= index < len(updates)]


def label_of(update: int, kept: int | None) -> str:
    """What a column is called."""
    return ("untouched model" if update == 0 else f"update {update}") + " (kept)" * (update == kept)


def judged(evidence: Evidence, photos: Sequence[Photo]) -> Gallery:
    """The pictures of eval/, which have scores."""
    updates = picked(evidence.updates, evidence.kept)
    names = {photo.name for photo in photos}
    moments = {update: {_shot_key(shot): shot for shot in evidence.shots(update)} for update in updates}
    told = next((evidence.shots(update) for update in reversed(updates) if moments[update]), [])
    if 0 in moments and not moments[0]:  # the base's pictures have the places of the others' shots
        base = evidence.run.evaluated / "update-000000"
        moments[0] = {_shot_key(shot): _unscored(shot, base) for shot in told}
    shown = told[:MAX_ROWS]
    files = [moments[u][_shot_key(s)]["path"] for s in shown for u in updates if _shot_key(s) in moments[u]]
    sources = dict(zip(files, thumbnails(files, SIDE_PX), strict=True))
    rows = []
    for shot in shown:
        pictures = []
        for update in updates:
            own = moments[update].get(_shot_key(shot))
            pictures.append(_picture(evidence, own, update, sources[own["path"]], names) if own else None)
        about = f"{KINDS.get(str(shot.get('kind')), '')}, seed {shot.get('seed')}"
        rows.append(Row(str(shot.get("prompt", "")), about, pictures))
    return Gallery(rows, _left_out(len(told), len(shown), len(evidence.updates), len(updates)))


def _unscored(shot: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {key: shot.get(key) for key in ("prompt", "seed", "kind", "concept")} | {"path": folder / shot["path"].name}


def sampled(evidence: Evidence) -> Gallery:
    """The pictures of samples/, the prompts that the person wanted to watch."""
    run = evidence.run
    every = sample_updates(run) if run.samples.is_dir() else []
    updates = picked(every, evidence.kept)
    folders = [run.samples / f"update-{update:06d}" for update in updates]
    files = [list_images(folder) for folder in folders]
    names = sorted({path.name for column in files for path in column})
    shown = names[:MAX_ROWS]
    wanted = [folder / name for name in shown for folder in folders]
    sources = dict(zip(wanted, thumbnails(wanted, SIDE_PX), strict=True))
    rows = []
    for name in shown:
        about = next((read_settings(folder / name) for folder in folders if sources[folder / name]), {})
        prompt = str(about.get("prompt", name))
        pictures = [
            Picture(sources[folder / name], _link(evidence, folder / name), label_of(update, evidence.kept),
                    f"{prompt}, {label_of(update, None)}") if (folder / name).is_file() else None
            for update, folder in zip(updates, folders, strict=True)
        ]  # fmt: skip
        rows.append(Row(prompt, f"seed {about['seed']}" if "seed" in about else "", list(pictures)))
    return Gallery(rows, _left_out(len(names), len(shown), len(every), len(updates)))


def _shot_key(shot: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(shot.get(key)) for key in ("prompt", "seed", "kind", "concept"))


def _picture(
    evidence: Evidence, shot: dict[str, Any], update: int, source: str | None, photos: set[str]
) -> Picture:  # fmt: skip
    label = label_of(update, evidence.kept)
    nearest, concept = shot.get("nearest_photo"), shot.get("concept") or 0
    name = f"photo-{concept}-{nearest}"
    about = f"nearest training photo, {nearest}"
    if is_number(shot.get("similarity")):
        about += f": similarity {shot['similarity']:.3f}"
    known = update > 0 and name in photos
    return Picture(
        source, _link(evidence, shot["path"]), label, f"{shot.get('prompt')}, {label}", _badges(shot, update),
        name if known else "", about if known else "",
    )  # fmt: skip


def _badges(shot: dict[str, Any], update: int) -> list[tuple[str, str, str]]:
    badges = []
    if shot.get("is_copy"):
        p_value = shot.get("p_value")
        chance = f" (p = {p_value:.2g})" if is_number(p_value) else ""
        badges.append(("copy", "bad", f"nearer to a training photo than unseen photos are{chance}"))
    for key, name in (("dino", "DINO"), ("clip_t", "CLIP-T"), *([("drift", "drift")] if update else [])):
        if is_number(shot.get(key)) and not (key == "drift" and "dino" in shot):
            badges.append((f"{name} {shot[key]:.2f}", "", ""))
    words = shot.get("words")
    for word, is_obeyed in words.items() if isinstance(words, dict) else ():
        badges.append((f"{'✓' if is_obeyed else '✗'} {word}", "good" if is_obeyed else "bad", "word of the prompt"))
    return badges


def _link(evidence: Evidence, path: Path) -> str:
    """The file seen from the page, below the run's own folder: never another place or another protocol."""
    return quote(path.relative_to(evidence.run.path).as_posix())


def _left_out(rows: int, shown_rows: int, columns: int, shown_columns: int) -> str:
    hidden = [f"{rows - shown_rows} of {rows} shots"] if rows > shown_rows else []
    hidden += [f"{columns - shown_columns} of {columns} moments"] if columns > shown_columns else []
    return f"Not shown, to keep the page small: {' and '.join(hidden)}; their files lie in the run." if hidden else ""
