"""`python -m dreamlab.evaluate`: measure a finished run again, its snapshots too, or anybody's model.

A run knows its photos, words and base model. For another model they are given: `base=` is what it was trained from.
The numbers go where a run's own go: evaluations.jsonl, eval/ and verdict.json of a run directory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dreamlab import entry
from dreamlab.commands import Evaluate
from dreamlab.config import setting_names
from dreamlab.errors import UserError
from dreamlab.schema import Train

if TYPE_CHECKING:
    from dreamlab.models import Family
    from dreamlab.runs import RunDirectory
    from dreamlab.subject import Subject


def _of_run(settings: Evaluate, run: "RunDirectory") -> Train:
    """The settings of a run, with this evaluation in place of its own."""
    if settings.instance_dir or settings.class_word or settings.base:
        raise UserError(f"run={settings.run} knows its photos, words and base model: leave them out.")
    # What a newer version added has its default; what it dropped is not asked for
    known = {key: value for key, value in run.read_config().items() if key in set(setting_names(Train))}
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Train), known))
    config.eval, config.device = settings.eval, settings.device
    config.cache_dir, config.early_stop = settings.cache_dir or config.cache_dir, "none"
    if settings.precision:
        config.precision = settings.precision
    return Train(**vars(config))


def _of_model(settings: Evaluate, side: int) -> Train:
    """The settings that a run with this model's base, photos and words would have had."""
    given = {"base": settings.base, "instance_dir": settings.instance_dir, "class_word": settings.class_word}
    missing = [key for key, value in given.items() if not value]
    if missing:
        raise UserError(
            f"run={settings.run} is no run of dreamlab: say {', '.join(f'{key}=...' for key in missing)} too."
        )
    if settings.token == "auto":
        raise UserError("token=auto is for training: say which identifier this model was taught.")
    from dreamlab.models import family_of

    config = Train(
        instance_dir=str(settings.instance_dir), class_word=settings.class_word, token=settings.token,
        eval=settings.eval, resolution=settings.resolution or side, device=settings.device,
        cache_dir=settings.cache_dir, prior_weight=0.0, precision=settings.precision or "fp32",
    )  # fmt: skip
    config.model.source, config.prior.kind, config.data.holdout = str(settings.base), "none", 0
    config.model.family = family_of(str(settings.base))
    return config


def _tuned(settings: Evaluate, run: "RunDirectory | None", steps: int) -> Iterator[tuple[int, str]]:
    """Updates and sources of the models to measure: snapshots, where there are any, and the finished one."""
    if run is None:
        yield 1, settings.run
        return
    from dreamlab.runs import numbered, source_of, update_of

    for snapshot in reversed(numbered(run.snapshots)):
        if update_of(snapshot) != steps:
            yield update_of(snapshot), str(snapshot)
    if run.model.is_dir() or not run.snapshots.is_dir():
        yield steps, source_of(settings.run)


def evaluate(settings: Evaluate) -> "RunDirectory":
    """Measure what `settings` name; returns the run directory that holds the numbers."""
    from dreamlab import assemble, learning, measuring, verdict
    from dreamlab.drawn import Drawn
    from dreamlab.models import load
    from dreamlab.page import write_page
    from dreamlab.runlog import RunLog
    from dreamlab.runs import run_of, write_json
    from dreamlab.subject import read_subject

    known = run_of(settings.run)
    config = _of_run(settings, known) if known else _of_model(settings, _side(settings))
    subject = read_subject(config)
    run = known or _new_run(settings, config, subject)
    judge = measuring.judge(config, subject, run)
    if judge is None:
        raise UserError("eval=none measures nothing. Choose eval=quick, standard or paper.")
    status = run.status()
    tuned = list(_tuned(settings, known, int(status.get("update", config.steps))))
    base = assemble.base_model(config)
    learning.add_words(config, subject, base)
    moments = measuring.moments(config, subject, RunLog(run, config.steps), base, judge, None, Drawn())
    run.evaluations.rewind(-1)
    moments.keep(0, moments.base)
    for update, source in tuned:
        model: Family = load(config.model.family, source, config=config.model.config, options=base.options)
        moments.draw = measuring.drawing(config, model, None)
        moments.take(update)
    told = verdict.judge(run.evaluations.rows(), run.probes.rows())
    write_json(run.verdict, told.as_json())
    print(told.sentence)
    print(write_page(run))
    return run


def _side(settings: Evaluate) -> int:
    """The resolution of a model that is no run."""
    from dreamlab.models import load

    return settings.resolution or load(None, settings.run).default_resolution()


def _new_run(settings: Evaluate, config: Train, subject: "Subject") -> "RunDirectory":
    """A run directory for the numbers of somebody's model."""
    from dreamlab import assemble
    from dreamlab.runs import RunDirectory

    name = Path(settings.run).name or "model"
    run = RunDirectory(Path(settings.out or f"outputs/evaluations/{name}").expanduser())
    run.path.mkdir(parents=True, exist_ok=True)
    assemble.record(config, subject, run)
    run.set_status("finished", update=1, evaluated=settings.run)
    return run


def main() -> None:
    """The console command dreamlab-evaluate."""
    entry.run("evaluate", Evaluate, evaluate)


if __name__ == "__main__":
    main()
