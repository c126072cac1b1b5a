"""Runs as members of a comparison: in which settings they differ, which moment stands for each, and how they ended.

The moment is the one that the run's verdict keeps, else the last that was measured. Called by compare.py.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamlab.departures import differing
from dreamlab.evidence import Evidence, read_evidence
from dreamlab.measures import MEASURES, interval
from dreamlab.page import verdict_state
from dreamlab.pareto import Candidate
from dreamlab.presets import leaves
from dreamlab.runs import RunDirectory

FIDELITY, DRIFT = "eval/dino", "eval/drift_class"


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    number: int  # from 1: what it is called in charts
    name: str
    evidence: Evidence
    settings: dict[str, Any]  # those that differ, in dotted form
    update: int | None  # the moment that stands for it
    numbers: dict[str, float]

    @property
    def label(self) -> str:
        """How charts and sentences name it."""
        return f"#{self.number}"

    @property
    def state(self) -> str:
        """How it ended: finished, failed, interrupted, running or unknown."""
        return str(self.evidence.status.get("state") or "unknown")

    @property
    def verdict(self) -> str:
        """The verdict's word."""
        return verdict_state(self.evidence)

    def candidate(self) -> Candidate | None:
        """Its fidelity and drift, where both were measured."""
        fidelity, drift = interval(self.numbers, FIDELITY), interval(self.numbers, DRIFT)
        return Candidate(self.label, fidelity, drift, self.verdict == "good") if fidelity and drift else None


def read_members(paths: Sequence[Path]) -> list[Member]:
    """The runs below `paths`, in this order."""
    evidences = [read_evidence(RunDirectory(path)) for path in paths]
    keys = differing([evidence.config for evidence in evidences])
    members = []
    for number, evidence in enumerate(evidences, 1):
        known = dict(leaves(evidence.config))
        update = _moment(evidence)
        members.append(Member(
            number, evidence.run.path.resolve().name, evidence, {key: known.get(key) for key in keys}, update,
            evidence.at(update),
        ))  # fmt: skip
    return members


def _moment(evidence: Evidence) -> int | None:
    measured = [int(row["update"]) for row in evidence.evaluations]
    later = [update for update in measured if update > 0]
    return evidence.kept if evidence.kept in measured else later[-1] if later else None


def measured_keys(members: Sequence[Member]) -> list[str]:
    """The measures that any member has."""
    return [measure.key for measure in MEASURES if any(measure.key in member.numbers for member in members)]


def number_columns(members: Sequence[Member]) -> list[str]:
    """The same with the ends of their intervals, as tables have them."""
    return [
        column for key in measured_keys(members) for column in (key, f"{key}_low", f"{key}_high")
        if any(column in member.numbers for member in members)
    ]  # fmt: skip


def results_csv(members: Sequence[Member]) -> str:
    """A table for other programs: a row for each run, with intervals."""
    columns = number_columns(members)
    keys = list(members[0].settings) if members else []
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "state", "message", "verdict", "update", *keys, *columns, "seconds"])
    for member in members:
        status = member.evidence.status
        words = [member.name, member.state, status.get("message", ""), member.verdict, member.update,
                 *member.settings.values()]  # fmt: skip
        scores = [member.numbers.get(column) for column in columns]
        writer.writerow([_safe(word) for word in words] + [*scores, _safe(status.get("seconds"))])
    return file.getvalue()


def _safe(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
