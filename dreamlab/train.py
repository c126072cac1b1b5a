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
    from torch.utils.data import DataLoader

    from dreamlab.module import DreamBooth
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
        from dreamlab import assemble, feed

        with contextlib.nullcontext() if joins else run.guarded(start.signature, start.update):
            if not joins:
                assemble.record(config, subject, run)
            model = assemble.base_model(config)
            sets = feed.image_sets(config, subject, model)
            module = assemble.module(config, model)
            fit = _join if joins else _lead
            fit(config, subject, run, start, module, feed.batches(config, sets, start, module))
    return run


def _lead(
    config: Train, subject: "Subject", run: "RunDirectory", start: "Start", module: "DreamBooth",
    batches: "DataLoader[Any]",
) -> None:  # fmt: skip
    """Sample, train, save, sample again; the run is left finished, or interrupted with a state to go on from."""
    from dreamlab import assemble, loggers, report
    from dreamlab.processes import is_shared_out

    began, succeeded = time.perf_counter(), False
    logger = assemble.logger(config, subject, run)
    try:
        average = assemble.average(config, module)
        samples = assemble.samples(config, subject, run, module.model, average)
        if not samples.is_taken(0):
            samples.take(logger, 0)
        run.rewind_metrics(start.update)
        trainer = assemble.trainer(config, subject, run, start, samples, logger, average)
        trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)
        if trainer.global_step < config.steps:
            raise KeyboardInterrupt
        model = module.model
        if is_shared_out(config.trainer.devices, config.trainer.strategy):
            model = assemble.gathered(config, run)
            samples = assemble.samples(config, subject, run, model, None)
        samples.take(logger, config.steps)
        with average.in_use() if average else contextlib.nullcontext():
            run.save_model(model)
        if subject.sample_prompts:
            report.draw_grid(run, run.grid)
        run.set_status("finished", update=config.steps, signature=start.signature, seconds=time.perf_counter() - began)
        succeeded = True
    finally:
        loggers.close(logger, succeeded)


def _join(
    config: Train, subject: "Subject", run: "RunDirectory", start: "Start", module: "DreamBooth",
    batches: "DataLoader[Any]",
) -> None:  # fmt: skip
    """Train beside the first process, which writes all files."""
    from dreamlab import assemble

    average = assemble.average(config, module)
    samples = assemble.samples(config, subject, run, module.model, average)
    trainer = assemble.trainer(config, subject, run, start, samples, None, average)
    trainer.fit(module, batches, ckpt_path=start.checkpoint, weights_only=True)


@hydra.main(config_path=conf_dir(), config_name="train", version_base="1.3")
def _command(raw: DictConfig) -> None:
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
        from dreamlab.report import summarise

        if local_rank() == 0:
            summarise(run)


def main() -> None:
    """The console command dreamlab-train."""
    register_schemas()
    quiet_libraries()
    with explained(setting_names(Train)):
        _command()


if __name__ == "__main__":
    main()
