"""What a run directory tells of its run, read whatever is missing: page.py and compare.py are drawn from this alone.

    probes.jsonl        one object per probed update        evaluations.jsonl   one per evaluated update, 0 the base
    eval/               update-000200/0000.png ... and scores.json, which says what each picture is and scores
                        photos/0-0000.png: photo 0 of concept 0 as it was judged, 0-held-0000.png: a held-out one
    verdict.json        sentence, state, the update to keep, reasons

A file that is absent, cut short or damaged counts as missing and is told of; nothing here raises for it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dreamlab.runs import RunDirectory, numbered, update_of

STATES = ("good", "underfitted", "overfitted", "unmeasured")
ABSENCES = {  # file -> what is not known without it
    "config.yaml": "the settings are unknown",
    "card.json": "versions, hardware and prompts are unknown",
    "status.json": "whether the run ended is unknown",
    "metrics.jsonl": "no training losses; the run ended before its first update",
    "probes.jsonl": "no probes were taken",
    "evaluations.jsonl": "nothing was measured; the run has eval=none, or ended before its first evaluation",
    "verdict.json": "no verdict; a run gets one when it is over and was measured",
}


@dataclass(frozen=True)
class Evidence:
    """One run as its files tell it; rows are in order of their `update` and hold finite numbers only."""

    run: RunDirectory
    status: dict[str, Any]
    card: dict[str, Any]
    config: dict[str, Any]
    verdict: dict[str, Any]
    metrics: list[dict[str, float]]
    probes: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    missing: list[str]  # sentences

    @property
    def kept(self) -> int | None:
        """The update that the verdict keeps."""
        keep = self.verdict.get("keep")
        return keep if isinstance(keep, int) and not isinstance(keep, bool) else None

    @property
    def updates(self) -> list[int]:
        """The moments at which the run was measured or has pictures to judge, in order."""
        pictured = [update for update in map(update_of, numbered(self.run.evaluated)) if update >= 0]
        return sorted({int(row["update"]) for row in self.evaluations} | set(pictured))

    def at(self, update: int | None) -> dict[str, float]:
        """What was measured and probed at an update, empty where nothing was."""
        found: dict[str, float] = {}
        for row in (*self.probes, *self.evaluations):
            if row["update"] == update:
                found |= row
        return found

    def shots(self, update: int) -> list[dict[str, Any]]:
        """The pictures of a moment, each with its `prompt`, `seed`, `kind`, `path` and scores."""
        folder = self.run.evaluated / f"update-{update:06d}"
        shots = read_object(folder / "scores.json").get("shots")
        rows = [shot for shot in shots if isinstance(shot, dict)] if isinstance(shots, list) else []
        for number, row in enumerate(rows):  # only the name counts: a file elsewhere is none of this run's
            row["path"] = folder / Path(str(row.get("file") or f"{number:04d}.png")).name
        return rows


def read_evidence(run: RunDirectory) -> Evidence:
    """Everything that `run` tells."""
    status, card, verdict = (read_object(run.path / f"{name}.json") for name in ("status", "card", "verdict"))
    metrics, probes, evaluations = (
        read_rows(run.path / f"{name}.jsonl") for name in ("metrics", "probes", "evaluations")
    )
    try:
        config = run.read_config()
    except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException):
        config = {}
    read = {"config.yaml": config, "card.json": card, "status.json": status, "verdict.json": verdict,
            "metrics.jsonl": metrics, "probes.jsonl": probes, "evaluations.jsonl": evaluations}  # fmt: skip
    missing = [
        f"{name} is {_lack(run.path / name)}: {absence}." for name, absence in ABSENCES.items() if not read[name]
    ]
    if len(evaluations) == 1:
        missing.append(f"Only update {evaluations[0]['update']:.0f} was measured: there is nothing to compare it with.")
    return Evidence(run, status, card, config, verdict, metrics, probes, evaluations, missing)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_rows(path: Path) -> list[dict[str, float]]:
    """The numbers in a file of JSON lines by update; of two lines of one update the later counts."""
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get("update"), int):
            rows[row["update"]] = {key: value for key, value in row.items() if is_number(value)}
    return [rows[update] for update in sorted(rows)]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series(rows: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Updates and values of the rows that have `key`."""
    known = [row for row in rows if key in row]
    return [row["update"] for row in known], [row[key] for row in known]


def _lack(path: Path) -> str:
    if not path.is_file():
        return "missing"
    return "unreadable" if path.stat().st_size else "empty"
