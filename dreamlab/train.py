"""`python -m dreamlab.train`: check -> open -> prepare -> fit -> report.

A photo's way from here to the loss: train.py -> module.py -> diffusion.py -> loss.py. What is heavy is imported where
it is needed, so that `--help` is quick.
"""

import contextlib
import functools
import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dreamlab import garbage, sweeps
from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import UserError, explained
from dreamlab.quiet import quiet_libraries
from dreamlab.schema import Train

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from dreamlab.following import Following
    from dreamlab.module import DreamBooth
    from dreamlab.resume import Opened, Start
    from dreamlab.runs import RunDirectory


def train(config: Train) -> "RunDirectory":
    """Teach a subject; returns the run's directory. UserError for anything that the person can mend."""
    return train_together([config])[0]


def train_together(configs: Sequence[Train], in_sweep: bool = False) -> "list[RunDirectory]":
    """One training for runs that one can hold (see prefixes.py); returns their directories.

    `in_sweep`: another process that trains one of them is waited for, and what failed before is left alone unless
    retry=true.
    """
    from dreamlab.checks import check
    from dreamlab.claim import claimed
    from dreamlab.processes import local_rank
    from dreamlab.resume import folder_of, open_run, where_to_start
    from dreamlab.runs import cache_dir
    from dreamlab.whole import sweep

    checked, joins = [check(config) for config in configs], local_rank() > 0
    with contextlib.ExitStack() as claims:
        if not joins:
            for folder in sorted({folder_of(*one) for one in checked}):
                claims.enter_context(claimed(folder, in_sweep))
            sweep(cache_dir(checked[0][0].cache_dir), older_than_s=3600)  # other machines may be writing there now
        opened = [open_run(*one, joins) for one in checked]
        runs = [one.run for one in opened]
        unfinished = sorted((one for one in opened if not one.start.is_finished), key=lambda one: one.config.steps)
        left = [one.run for one in unfinished if in_sweep and not one.config.retry and one.run.has_failed()]
        wanted = [one for one in unfinished if one.run not in left]
        if wanted:
            gc.collect()  # the training before: trainer, module and callbacks refer to each other in circles
            _train(wanted, where_to_start(wanted, runs), joins)
    if left:
        told = "; ".join(f"{run.path.name} failed before ({run.status().get('message')})" for run in left)
        raise UserError(f"{told}. Try again what failed: the same command with retry=true.")
    return runs


def _train(members: "Sequence[Opened]", start: "Start", joins: bool) -> None:
    """Teach the subject once for all members, the shortest first."""
    from dreamlab import assemble, encoders, feed, learning
    from dreamlab.following import Following
    from dreamlab.inspect import warn
    from dreamlab.memory import explained_shortage, tell_need
    from dreamlab.naming import warn_of_identifiers
    from dreamlab.runlog import RunLog

    garbage.set_aside()
    config, subject, run, _ = members[-1]
    if not joins:
        warn(config, subject)
    load = functools.cache(encoders.load)
    with contextlib.ExitStack() as guards:
        followed = []
        for one in members if not joins else ():
            guards.enter_context(one.run.guarded(one.start.signature, start.update))
            log = RunLog(one.run, one.config.steps, one.start.signature)
            followed.append(Following(one.config, one.subject, log, load))
        guards.enter_context(explained_shortage(config))
        model = assemble.base_model(config)
        learning.add_words(config, subject, model)
        if not joins:
            warn_of_identifiers(model, subject)
        sets = feed.image_sets(config, subject, model)
        module = assemble.module(config, model)
        tell_need(config, module)
        batches = feed.batches(config, sets, start, module)
        if followed:
            _lead(followed, start, module, batches)
        else:
            average = assemble.average(config, module)
            trainer = assemble.trainer(config, subject, [RunLog(run, config.steps)], [], average)
            trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)


def _lead(followed: "Sequence[Following]", start: "Start", module: "DreamBooth", batches: "DataLoader[Any]") -> None:
    """Sample, train, save, sample again; each run is left finished, or interrupted with a state to go on from."""
    from dreamlab import assemble
    from dreamlab.captured import uncompile
    from dreamlab.drawn import Drawn
    from dreamlab.following import Conclusions

    longest, drawn = followed[-1], Drawn()
    try:
        average = assemble.average(longest.config, module)
        for one in followed:
            one.begin(start, module, average, drawn)
        watching = [drawn, *(watch for one in followed for watch in one.watching())]
        shorter = [one for one in followed if one.log.steps < longest.log.steps]
        trainer = assemble.trainer(
            longest.config, longest.subject, [one.log for one in followed], watching, average, [Conclusions(shorter)],
            assemble.captured(longest.config, module),
        )  # fmt: skip
        trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)
        uncompile(module.trained)
        reached = trainer.global_step
        if reached < longest.log.steps and not longest.stopped_by:
            raise KeyboardInterrupt
        for one in followed:
            if not one.is_over:
                one.conclude(module.model, reached)
    finally:
        for one in followed:
            one.close()


@hydra.main(config_path=conf_dir(), config_name="train", version_base="1.3")
def _command(raw: DictConfig) -> "tuple[float, float] | None":
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with explained(in_sweep=in_sweep):  # here too: Hydra would print a line of its own first
        config: Any = OmegaConf.to_object(raw)
        if in_sweep and config.trainer.devices > 1:
            raise UserError("A sweep in one process can't use several devices. Leave out -m, or trainer.devices.")
        from dreamlab.presets import tell_differences
        from dreamlab.processes import local_rank

        preset = HydraConfig.get().runtime.choices.get("experiment")
        if preset and local_rank() == 0:
            tell_differences(preset, HydraConfig.get().overrides.task)
        if in_sweep:
            return _in_sweep(config)
        if config.dry_run:
            from dreamlab.plan import plan_of
            from dreamlab.plan_table import tell

            tell(plan_of(config))
            return None
        run = train(config)
        if local_rank() == 0:
            from dreamlab.page import write_page
            from dreamlab.report import summarise

            write_page(run)
            summarise(run)
    return None


def _in_sweep(config: Train) -> "tuple[float, float] | None":
    """What a job of a sweep does: all runs of its training, if it is the first of their jobs."""
    from dreamlab.objectives import are_wanted, objectives

    hydra_settings = HydraConfig.get()
    configs = sweeps.together(hydra_settings, config)
    if not configs:
        return None
    group = config.logger.group or Path(hydra_settings.sweep.dir).name
    configs = [replace(one, logger=replace(one.logger, group=group)) for one in configs]
    runs = train_together(configs, in_sweep=True)
    for run in runs:
        from dreamlab.page import write_page
        from dreamlab.report import tell_briefly

        write_page(run)
        tell_briefly(run)
    if are_wanted(hydra_settings):
        sweeps.note(hydra_settings, int(hydra_settings.job.num), runs[0].path)
        return objectives(runs[0])
    return None


def main() -> None:
    """The console command dreamlab-train."""
    garbage.put_off()
    register_schemas()
    quiet_libraries()
    with explained(setting_names(Train)), sweeps.concluded():
        _command()


if __name__ == "__main__":
    main()
