"""A sweep from its first word to its last: the plan before it, and the comparison after it.

Hydra's sweeper and launchers do the work between. `Sweep` is named by conf/train.yaml under hydra.callbacks; train.py
asks `together` what a job trains, and runs all of it inside `concluded`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dreamlab.errors import UserError, explained
from dreamlab.schema import Train

NOTES = "runs"  # folder of text files, named by job: where its run lies
_begun: list[Path] = []  # folders of the sweeps that this process started


class Sweep(Callback):
    """Plans a sweep as it starts; with dry_run=true that is all."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write plan.json and say what will be done."""
        from dreamlab.config import setting_names
        from dreamlab.plan import make_plan
        from dreamlab.plan_table import tell

        folder = Path(config.hydra.sweep.dir)
        with explained(setting_names(Train)):  # Hydra would make a warning of any error here
            jobs = _jobs(config)
            if jobs is None:
                if config.dry_run:
                    raise UserError("dry_run=true: a search decides on its runs as it goes, so it has no plan.")
                _begun.append(folder)
                return
            plan = make_plan(jobs)
            tell(plan)
        if config.dry_run:
            raise SystemExit(0)
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder)
        _begun.append(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Let go of a job's settings: Hydra keeps two copies of them, a megabyte, until the sweep is over."""
        job_return.cfg = job_return.hydra_cfg = None


def _jobs(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job as Hydra's own sweeper will make them; None for other sweepers."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not str(config.hydra.sweeper._target_).endswith(BasicSweeper.__name__):
        return None
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    words: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return BasicSweeper.split_arguments(parser.parse_overrides([*given, *words]), None)[0]


def together(hydra_settings: Any, config: Train) -> list[Train]:
    """The settings of the runs that this job of a sweep trains: none where another job trains its run, too."""
    from dreamlab.plan import read_plan, settings_of
    from dreamlab.progress import console

    plan = read_plan(Path(hydra_settings.sweep.dir))
    if plan is None:
        return [config]
    members = plan.of_job(int(hydra_settings.job.num))
    if len(plan.members) > 1 and members and members[0].folder:
        trainings = plan.trainings()
        place = next(place for place, training in enumerate(trainings, 1) if training[0] is members[0])
        told = ", ".join(f"#{member.number + 1}" for member in members)
        until = max(member.steps for member in members)
        console.print(
            f"Training {place} of {len(trainings)}: run{'s' * (len(members) > 1)} {told}, {until} updates.",
            markup=False, highlight=False,
        )  # fmt: skip
    return [settings_of(member) for member in members]


def note(hydra_settings: Any, number: int, folder: Path) -> None:
    """Remember where a run of this sweep lies; a search has no plan to say it."""
    from dreamlab.whole import written_whole

    with written_whole(Path(hydra_settings.sweep.dir) / NOTES / f"{number:05d}") as temporary:
        temporary.write_text(str(folder.resolve()), encoding="utf-8")


def runs_of(folder: Path) -> list[Path]:
    """The run directories of the sweep in `folder`, in the order of its jobs; empty where it is no sweep's."""
    from dreamlab.plan import read_plan

    plan = read_plan(folder)
    if plan is None:
        return [Path(file.read_text(encoding="utf-8")) for file in sorted((folder / NOTES).glob("*"))]
    folders = [Path(member.folder) for member in plan.members if member.folder]
    return [path for path in dict.fromkeys(folders) if (path / "status.json").is_file()]


@contextlib.contextmanager
def concluded() -> Iterator[None]:
    """After the block, compare the runs of the sweep that it has started, also where some have failed."""
    try:
        yield
    except Exception:
        _compare()
        raise
    _compare()


def _compare() -> None:
    from dreamlab.report import conclude_sweep

    while _begun:
        folder = _begun.pop()
        paths = runs_of(folder)
        if len(paths) > 1:
            conclude_sweep(folder, paths)
