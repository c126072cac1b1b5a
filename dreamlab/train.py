"""`python -m dreamlab.train`: check -> open -> prepare -> fit -> report.

A photo's way from here to the loss: train.py -> module.py -> diffusion.py -> loss.py. What is heavy is imported where
it is needed, so that `--help` is quick.
"""

import time
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import explained
from dreamlab.quiet import quiet_libraries
from dreamlab.schema import Train

if TYPE_CHECKING:
    from dreamlab.checks import Subject
    from dreamlab.data import ImageSet
    from dreamlab.models import Family
    from dreamlab.resume import Start
    from dreamlab.runs import RunDirectory


def train(config: Train) -> "RunDirectory":
    """Teach one subject; returns the run's directory. UserError for anything that the person can mend."""
    from dreamlab.checks import check
    from dreamlab.claim import claimed
    from dreamlab.resume import folder_of, open_run

    config, subject = check(config)
    with claimed(folder_of(config, subject)):
        run, start = open_run(config, subject)
        if start.is_finished:
            return run
        from dreamlab import assemble

        with run.guarded(start.signature, start.update):
            assemble.record(config, subject, run)
            model = assemble.base_model(config)
            sets = assemble.image_sets(config, subject, model)
            fit(config, subject, run, start, model, sets)
    return run


def fit(
    config: Train, subject: "Subject", run: "RunDirectory", start: "Start", model: "Family", sets: "list[ImageSet]"
) -> None:
    """Sample, train, save, sample again; the run is left finished, or interrupted with a state to go on from."""
    from dreamlab import assemble, loggers, report

    began, succeeded = time.perf_counter(), False
    logger = assemble.logger(config, subject, run)
    try:
        samples = assemble.samples(config, subject, run, model)
        if not samples.is_taken(0):
            samples.take(logger, 0)
        run.rewind_metrics(start.update)
        trainer = assemble.trainer(config, subject, run, start, samples, logger)
        trainer.fit(
            assemble.module(config, model), assemble.batches(config, sets, start),
            ckpt_path=start.checkpoint, weights_only=True,
        )  # fmt: skip
        if trainer.global_step < config.steps:
            raise KeyboardInterrupt
        samples.take(logger, config.steps)
        run.save_model(model)
        if subject.sample_prompts:
            report.draw_grid(run, run.grid)
        run.set_status("finished", update=config.steps, signature=start.signature, seconds=time.perf_counter() - began)
        succeeded = True
    finally:
        loggers.close(logger, succeeded)


@hydra.main(config_path=conf_dir(), config_name="train", version_base="1.3")
def _command(raw: DictConfig) -> None:
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with explained(in_sweep=in_sweep):  # here too: Hydra would print a line of its own first
        config: Any = OmegaConf.to_object(raw)
        run = train(config)
        from dreamlab.report import summarise

        summarise(run)


def main() -> None:
    """The console command dreamlab-train."""
    register_schemas()
    quiet_libraries()
    with explained(setting_names(Train)):
        _command()


if __name__ == "__main__":
    main()
