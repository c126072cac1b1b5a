"""`python -m dreamlab.train`: check -> open -> prepare -> fit -> report.

A photo's way from here to the loss: train.py -> module.py -> diffusion.py -> loss.py. What is heavy is imported where
it is needed, so that `--help` is quick.
"""

import contextlib
import time
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import UserError, explained
from dreamlab.quiet import quiet_libraries
from dreamlab.schema import Train

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger
    from torch.utils.data import DataLoader

    from dreamlab.average import Average
    from dreamlab.callbacks import Samples
    from dreamlab.evaluation import Judge
    from dreamlab.models import Family
    from dreamlab.module import DreamBooth
    from dreamlab.moments import Moments
    from dreamlab.resume import Start
    from dreamlab.runs import RunDirectory
    from dreamlab.subject import Subject


def train(config: Train) -> "RunDirectory":
    """Teach a subject; returns the run's directory. UserError for anything that the person can mend."""
    from dreamlab.checks import check
    from dreamlab.claim import claimed
    from dreamlab.processes import local_rank
    from dreamlab.resume import folder_of, open_run

    config, subject = check(config)
    joins = local_rank() > 0
    with contextlib.nullcontext() if joins else claimed(folder_of(config, subject)):
        run, start = open_run(config, subject, joins)
        if start.is_finished:
            return run
        from dreamlab import assemble, feed, measuring

        with contextlib.nullcontext() if joins else run.guarded(start.signature, start.update):
            judge = None
            if not joins:
                assemble.record(config, subject, run)
                judge = measuring.judge(config, subject, run)
            model = assemble.base_model(config)
            sets = feed.image_sets(config, subject, model)
            module = assemble.module(config, model)
            batches = feed.batches(config, sets, start, module)
            if joins:
                _join(config, subject, run, start, module, batches)
            else:
                _lead(config, subject, run, start, module, batches, judge)
    return run


def _lead(
    config: Train, subject: "Subject", run: "RunDirectory", start: "Start", module: "DreamBooth",
    batches: "DataLoader[Any]", judge: "Judge | None",
) -> None:  # fmt: skip
    """Sample, train, save, sample again; the run is left finished, or interrupted with a state to go on from."""
    from dreamlab import assemble, loggers, measuring

    began, succeeded = time.perf_counter(), False
    run.rewind(start.update)
    logger = assemble.logger(config, subject, run)
    try:
        average = assemble.average(config, module)
        samples = assemble.samples(config, subject, run, module.model, average)
        if not samples.is_taken(0):
            samples.take(logger, 0)
        moments = measuring.moments(config, subject, run, module.model, judge, average) if judge else None
        if moments and not moments.is_taken(0):
            moments.keep(logger, 0, moments.base)
        probes = measuring.probes(config, subject, run, module)
        if probes and not start.update:
            probes.take(logger, 0)
        watching = [samples, *(watch for watch in (moments, probes) if watch)]
        trainer = assemble.trainer(config, subject, run, start, watching, logger, average)
        trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)
        reached, stopped_by = trainer.global_step, moments.stopped_by if moments else None
        if reached < config.steps and not stopped_by:
            raise KeyboardInterrupt
        _conclude(config, subject, run, module.model, average, samples, moments, logger, reached)
        told = {"stopped_early": stopped_by} if stopped_by else {}
        seconds = time.perf_counter() - began
        run.set_status("finished", update=reached, signature=start.signature, seconds=seconds, **told)
        succeeded = True
    finally:
        loggers.close(logger, succeeded)


def _conclude(
    config: Train, subject: "Subject", run: "RunDirectory", model: "Family", average: "Average | None",
    samples: "Samples", moments: "Moments | None", logger: "Logger | None", reached: int,
) -> None:  # fmt: skip
    """What is done with the weights of the last update: samples, the last moment, the model's folder, a verdict."""
    from dreamlab import assemble, report, verdict
    from dreamlab.processes import is_shared_out
    from dreamlab.runs import write_json

    if is_shared_out(config.trainer.devices, config.trainer.strategy):
        model = assemble.gathered(config, run)
        samples = assemble.samples(config, subject, run, model, None)
        moments = None  # they are bound to a model that is in pieces
    samples.take(logger, reached)
    if moments and not moments.is_taken(reached):
        moments.take(logger, reached)
    with average.in_use() if average else contextlib.nullcontext():
        run.save_model(model)
    if subject.sample_prompts:
        report.draw_grid(run, run.grid)
    if moments:
        write_json(run.verdict, verdict.judge(run.evaluations.rows(), run.probes.rows()).as_json())


def _join(
    config: Train, subject: "Subject", run: "RunDirectory", start: "Start", module: "DreamBooth",
    batches: "DataLoader[Any]",
) -> None:  # fmt: skip
    """Train beside the first process, which writes all files."""
    from dreamlab import assemble

    trainer = assemble.trainer(config, subject, run, start, [], None, assemble.average(config, module))
    trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)


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
        run = train(config)
        if local_rank() == 0:
            from dreamlab.page import write_page
            from dreamlab.report import summarise

            write_page(run)
            summarise(run)
        if in_sweep:
            from dreamlab.objectives import are_wanted, objectives

            if are_wanted(HydraConfig.get()):
                return objectives(run)
    return None


def main() -> None:
    """The console command dreamlab-train."""
    register_schemas()
    quiet_libraries()
    with explained(setting_names(Train)):
        _command()


if __name__ == "__main__":
    main()
