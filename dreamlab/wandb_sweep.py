"""What W&B shows of a whole sweep, beside the runs of its members: the local page's comparison (compare.py).

One run of job type "sweep" stands in the members' group. It holds a row for each member, the fidelity and drift of
their moments, the page itself and, in its summary, which run to take and why. Online, and with the package
wandb-workspaces, there is a report over the group, too. Called when a sweep is over, which no failure here may undo.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamlab.compare import NAMES, OVERLAID, Comparison
from dreamlab.contact_sheet import Shot, pictures_of
from dreamlab.loggers import open_wandb
from dreamlab.members import DRIFT, FIDELITY, Member, number_columns
from dreamlab.progress import say
from dreamlab.secrets import without_secrets
from dreamlab.thumbnails import shrunk

if TYPE_CHECKING:
    import wandb

MAX_PAGE_BYTES = 20_000_000
SIDE_PX = 256  # of pictures in the table


def log_sweep(
    comparison: Comparison, *, folder: Path, project: str, mode: str, group: str, page: Path, tags: Sequence[str] = ()
) -> None:  # fmt: skip
    """Show a sweep that is over in W&B; what W&B can't do becomes a line to the person.

    `folder` is where W&B's files go, `mode` is the setting `logger.mode`, `page` the file of the comparison.
    """
    import wandb

    try:
        with open_wandb(folder, group, project, mode, group=group, job_type="sweep", tags=tags) as run:
            run.summary.update(_recommendation(comparison))
            run.log({"sweep/runs": sweep_table(comparison), **_scatter(comparison), **_page(page)})
        is_online, entity = not (run.offline or run.disabled), run.entity
    except (wandb.Error, OSError) as error:
        say(f"dreamlab: the sweep is not in W&B ({_in_a_line(error)}); its page is {page}.")
        return
    if is_online:
        save_report(entity, project, group)


def _recommendation(comparison: Comparison) -> dict[str, Any]:
    chosen, choice, members = comparison.chosen, comparison.choice, comparison.members
    told = {"members": len(members), "finished": sum(member.state == "finished" for member in members)}
    if chosen is None or choice is None:
        return {**told, "reasons": "No recommendation: no run was measured."}
    front = ", ".join(f"{member.label} {member.name}" for member in members if member.number in comparison.front)
    return {**told, "recommended": chosen.name, "recommended_number": chosen.number, "update": chosen.update,
            "reasons": "\n".join(choice.reasons), "front": front}  # fmt: skip


def sweep_table(comparison: Comparison) -> "wandb.Table":
    """A row for each member: how it ended, the settings that differ, its measures, and a picture before and after."""
    import wandb

    members = comparison.members
    numbers, pictures = number_columns(members), _pictures(members)
    columns: dict[str, list[Any]] = {
        "number": [member.number for member in members],
        "run": [member.name for member in members],
        "state": [member.state for member in members],
        "message": _of_one_type([member.evidence.status.get("message") for member in members]),
        "verdict": [member.verdict for member in members],
        "recommended": [member is comparison.chosen for member in members],
        "front": [member.number in comparison.front for member in members],
        "update": [member.update for member in members],
        **{key: _of_one_type([member.settings[key] for member in members]) for key in members[0].settings},
        **{key: [member.numbers.get(key) for member in members] for key in numbers},
    }
    if pictures:
        columns["untouched"], columns["tuned"] = map(list, zip(*pictures, strict=True))
    return wandb.Table(columns=list(columns), data=[list(row) for row in zip(*columns.values(), strict=True)])


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """The values as a column of W&B's, which has one type: words where they aren't all numbers or all true or false."""
    known = [value for value in values if value is not None]
    is_uniform = all(isinstance(value, bool) for value in known) or all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in known
    )
    return [value if is_uniform or value is None else str(value) for value in values]


def _pictures(members: Sequence[Member]) -> list[tuple["wandb.Image | None", "wandb.Image | None"]]:
    """For each member one shot, the one that most have: the untouched model's and that of the member's own moment."""
    drawn: list[tuple[int, dict[Shot, Path], dict[Shot, Path]]] = []
    for member in members:
        moments = pictures_of(member.evidence)
        update = member.update or max(moments, default=0)  # an unmeasured run has samples of its end
        drawn.append((update, moments.get(0, {}), moments.get(update, {}) if update else {}))
    count = Counter(shot for _, before, after in drawn for shot in (*before, *after))
    shots = [shot for shot, _ in count.most_common(1)]
    return [
        (_image(before.get(shot), member, shot, 0), _image(after.get(shot), member, shot, update))
        for shot in shots for member, (update, before, after) in zip(members, drawn, strict=True)
    ]  # fmt: skip


def _image(file: Path | None, member: Member, shot: Shot, update: int) -> "wandb.Image | None":
    import wandb

    picture = shrunk(file, SIDE_PX) if file else None
    prompt = shot[0].replace("{token}", str(member.evidence.config.get("token")))
    caption = f"{prompt} | seed {shot[1]} | update {update}"
    return wandb.Image(picture, caption=caption, file_type="jpg") if picture else None


def _scatter(comparison: Comparison) -> dict[str, Any]:
    """The moments that stand for the members; in W&B's own plots over a group it is the last one of each."""
    import wandb

    points = [[member.name, one.drift[0], one.fidelity[0]] for member, one in comparison.rivals]
    if not points:
        return {}
    x, y = NAMES[DRIFT].label, NAMES[FIDELITY].label
    table = wandb.Table(columns=["run", x, y], data=points)
    return {"sweep/front": wandb.plot.scatter(table, x, y, title="Subject fidelity against class drift")}


def _page(page: Path) -> dict[str, Any]:
    import wandb

    if page.stat().st_size > MAX_PAGE_BYTES:
        say(f"dreamlab: {page} is too large for W&B, which has the rest of the sweep.")
        return {}
    return {"sweep/page": wandb.Html(page.read_text(encoding="utf-8"), inject=False, data_is_not_path=True)}


def save_report(entity: str, project: str, group: str) -> None:
    """Make the report of a group at W&B, and tell where it is or why there is none."""
    try:
        report = sweep_report(entity, project, group)
        report.save()
        told = f"W&B report of the sweep: {report.url}"
    except ImportError:
        told = "dreamlab: for a W&B report of a sweep, pip install 'dreamlab[workspaces]'."
    except Exception as error:  # the package is a preview and speaks to a server: whatever fails, the sweep is done
        told = f"dreamlab: there is no W&B report of the sweep ({_in_a_line(error)})."
    say(told)


def sweep_report(entity: str, project: str, group: str) -> Any:
    """A report over the runs of a group, not saved yet: fidelity against drift, and how the main measures went."""
    import wandb_workspaces.reports.v2 as reports

    about = (
        f'The sweep "{group}". Points are the last measured moments; the run of job type "sweep" has those that'
        " stand for the runs, the table with pictures, and which run to take."
    )
    scatter = reports.ScatterPlot(
        title="Subject fidelity against class drift", x=reports.SummaryMetric(DRIFT), y=reports.SummaryMetric(FIDELITY),
        layout=reports.Layout(x=0, y=0, w=24, h=12),
    )  # fmt: skip
    lines = [
        reports.LinePlot(
            title=f"{NAMES[key].label}: {NAMES[key].about}", x="trainer/global_step", y=[key],
            layout=reports.Layout(x=12 * (place % 2), y=12 + 8 * (place // 2), w=12, h=8),
        )
        for place, key in enumerate(OVERLAID)
    ]  # fmt: skip
    # The package rewrites = and < in a filter's text before it parses it as Python, in names, too: so, escapes
    name = "".join(f"\\U{ord(letter):08x}" for letter in group)
    runs = reports.Runset(name=group, filters=f'Metric("Group") == "{name}"')
    return reports.Report(
        entity=entity, project=project, title=f"Sweep {group}"[:128], description=about, width="fluid",
        blocks=[reports.P(about), reports.PanelGrid(runsets=[runs], panels=[scatter, *lines])],
    )  # fmt: skip


def _in_a_line(error: BaseException) -> str:
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
