"""One page for many runs: which settings gave which pictures and numbers, and which run to take.

Everything comes from run directories, as on the page of a run (page.py). results.csv beside it has the same numbers for
other programs. Called by report.py; W&B is shown the same comparison by wandb_sweep.py.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamlab.charts import PALETTE, Chart, Line, Panel, Point, curves, scatter
from dreamlab.command_lines import commands_for
from dreamlab.commands import Report
from dreamlab.contact_sheet import contact_sheet
from dreamlab.errors import UserError
from dreamlab.evidence import series
from dreamlab.html import render, write_html
from dreamlab.measures import ARROWS, MEASURES, interval
from dreamlab.members import DRIFT, FIDELITY, Member, measured_keys, read_members, results_csv
from dreamlab.page import PAGE
from dreamlab.pareto import Candidate, Choice, choose, dominates, front
from dreamlab.sweeps import runs_of
from dreamlab.whole import written_whole

OVERLAID = ("eval/dino", "eval/clip_t", "eval/drift_class", "probe/held_out_loss")
NAMES = {measure.key: measure for measure in MEASURES}


def compare(settings: Report) -> Path:
    """Write the page that `runs` or `folder` ask for; returns its path."""
    paths = _named(settings.runs or []) if settings.folder is None else _below(Path(settings.folder).expanduser())
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    if settings.folder is not None:
        folder = Path(settings.folder).expanduser()
    out = Path(settings.out).expanduser() if settings.out else folder / "comparison.html"
    return write_comparison(paths, out)


def _named(given: Sequence[str]) -> list[Path]:
    paths = [Path(name).expanduser() for name in given]
    for path in paths:
        if not (path / "status.json").is_file():
            raise UserError(f"runs: there is no run in {path}. Give directories below outputs/.")
    if not paths:
        raise UserError("runs=[] names no run. Give directories: runs=[outputs/a,outputs/b]")
    return list(dict.fromkeys(paths))


def _below(folder: Path) -> list[Path]:
    if (folder / "status.json").is_file():
        raise UserError(f"folder={folder} is one run, not a folder of them. Say run={folder}.")
    members = runs_of(folder)
    if members:
        return members
    found = [path.parent for depth in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(f"{depth}/status.json"))]
    if not found:
        raise UserError(f"folder={folder}: there are no runs in this folder. Give one that holds run directories.")
    return found


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, and which of them to take."""

    members: list[Member]
    rivals: list[tuple[Member, Candidate]]  # those whose fidelity and drift were both measured
    front: set[int]  # numbers of the members that no other beats in both
    choice: Choice | None  # its index is a place in `rivals`

    @property
    def chosen(self) -> Member | None:
        """The member to take, None where none was measured."""
        return self.rivals[self.choice.index][0] if self.choice else None


def compared(paths: Sequence[Path]) -> Comparison:
    """The comparison of the runs at `paths`, in this order."""
    members = read_members(paths)
    rivals = [(member, candidate) for member in members if (candidate := member.candidate())]
    candidates = [candidate for _, candidate in rivals]
    return Comparison(members, rivals, {rivals[index][0].number for index in front(candidates)}, choose(candidates))


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write the page of the runs at `paths` and results.csv beside it; returns the page's path."""
    return draw_comparison(compared(paths), out)


def draw_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page of a comparison and results.csv beside it; returns the page's path."""
    members, chosen = comparison.members, comparison.chosen
    sheet = contact_sheet(members)
    html = render(
        "compare.html",
        script="compare.js",
        members=members,
        links={member.number: _link(member, out) for member in members},
        keys=list(members[0].settings),
        measures=[NAMES[key] for key in measured_keys(members)],
        arrows=ARROWS,
        interval=interval,
        front=comparison.front,
        dominated=_dominated(comparison.rivals),
        choice=comparison.choice,
        chosen=chosen,
        commands=_commands(chosen),
        verdicts=Counter(member.verdict for member in members).most_common(),
        failed=[member for member in members if member.state != "finished"],
        scatter=_scatter(comparison),
        charts=overlaid(members, chosen),
        sheet=sheet,
        data=sheet.as_json(),
    )
    write_html(out, html)
    with written_whole(out.with_name("results.csv")) as temporary:
        temporary.write_text(results_csv(members), encoding="utf-8")
    return out


def _link(member: Member, out: Path) -> str | None:
    """The page of a run seen from the comparison, None where it has none."""
    page = member.evidence.run.path / PAGE
    return quote(os.path.relpath(page.resolve(), out.resolve().parent)) if page.is_file() else None


def _commands(chosen: Member | None) -> dict[str, str]:
    return commands_for(chosen.evidence, chosen.update) if chosen and chosen.update is not None else {}


def _dominated(rivals: Sequence[tuple[Member, Candidate]]) -> dict[int, str]:
    """By number of a run, the run that beats it in both: of several the most faithful."""
    found = {}
    for member, candidate in rivals:
        above = [other for _, other in rivals if dominates(other, candidate)]
        if above:
            found[member.number] = max(above, key=lambda other: other.fidelity[0]).label
    return found


def _scatter(comparison: Comparison) -> Chart | None:
    points = [
        Point(candidate.drift, candidate.fidelity, member.label, f"#run-{member.number}",
              member.number in comparison.front, member is comparison.chosen)
        for member, candidate in comparison.rivals
    ]  # fmt: skip
    labels = (f"{NAMES[DRIFT].label} (lower is better)", f"{NAMES[FIDELITY].label} (higher is better)")
    return scatter("front", "Subject fidelity against class drift", labels, points)


def _name(member: Member) -> str:
    """What a legend calls a run: its number and, where they are short, its settings."""
    told = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in member.settings.items())
    return f"{member.label}: {told}" if told and len(told) <= 24 else member.label


def overlaid(members: Sequence[Member], chosen: Member | None) -> list[Chart]:
    """A chart for each of the main measures with a line for each run; where they are many, only one has a colour."""
    is_crowded = len(members) > len(PALETTE)
    drawn = []
    for key in OVERLAID:
        lines = []
        for member in members:
            rows: Any = member.evidence.probes if key.startswith("probe/") else member.evidence.evaluations
            is_chosen = chosen is member
            colour = (PALETTE[1] if is_chosen else PALETTE[0]) if is_crowded else None
            label = _name(member) if not is_crowded or is_chosen else ""
            lines.append(Line(label, *series(rows, key), colour=colour, mark=f"curve-{member.number}",
                              faint=is_crowded and not is_chosen))  # fmt: skip
        name, measure = key.replace("/", "-").replace("_", "-"), NAMES[key]
        drawn.append(curves(name, f"{measure.label}: {measure.about}", [Panel(measure.label, lines)]))
    return [chart for chart in drawn if chart]
