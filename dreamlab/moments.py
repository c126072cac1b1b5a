"""Moments of a run at which it is measured: the same shots drawn again, scored, kept and logged.

Moment 0 is the untouched model, whose pictures are shared by all runs that ask for the same. Called by train.py, during
training and after it, and by evaluate.py for finished runs and other people's models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning import Trainer

from dreamlab import encoders, prompts
from dreamlab.callbacks import Draw, Updates
from dreamlab.encoders import Encoder
from dreamlab.evaluation import Judge, Photos, Shot
from dreamlab.loggers import log_images, log_shots
from dreamlab.photos import Loading, Region, crop, read_photo
from dreamlab.pictures import as_picture, save_png
from dreamlab.progress import progress
from dreamlab.prompt_sets import find_set
from dreamlab.quiet import quiet_imported_libraries
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory, write_json
from dreamlab.schema import Eval
from dreamlab.subject import Concept
from dreamlab.verdict import joined, should_stop


@dataclass(frozen=True)
class Plan:
    """What is drawn at every moment."""

    shots: list[Shot]

    @property
    def prompts(self) -> list[str]:
        """Of each shot."""
        return [shot.prompt for shot in self.shots]

    @property
    def seeds(self) -> list[int]:
        """Of each shot."""
        return [shot.seed for shot in self.shots]


def plan(settings: Eval, concepts: Sequence[Concept]) -> Plan:
    """The shots of an evaluation: image k of a prompt has seed + k."""
    shots: list[Shot] = []
    for number, concept in enumerate(concepts):
        chosen = find_set(settings.prompts, concept.class_word)
        far = (*chosen.far, *chosen.accessories, *chosen.properties)
        asked = {
            "near": chosen.near[: settings.near], "far": _spread(far, settings.far),
            "unrelated": _spread(chosen.unrelated, settings.unrelated) if number == 0 else (),
        }  # fmt: skip
        for kind, templates in asked.items():
            for template in templates:
                prompt = prompts.fill(template, concept.token, concept.class_word)
                seeds = range(settings.seed, settings.seed + settings.images_per_prompt)
                shots += [Shot(prompt, kind, seed, number, concept.token) for seed in seeds]
        if settings.class_images:
            prompt = prompts.fill(chosen.class_prompts[0], concept.token, concept.class_word)
            seeds = range(settings.seed, settings.seed + settings.class_images)
            shots += [Shot(prompt, "class", seed, number, concept.token) for seed in seeds]
    return Plan(shots)


def _spread(templates: Sequence[str], count: int | None) -> Sequence[str]:
    """`count` of the templates, evenly spaced, so that few hold a bit of everything; None: all."""
    if count is None or count >= len(templates):
        return templates
    return [templates[place * len(templates) // count] for place in range(count)]


def make_judge(
    settings: Eval, concepts: Sequence[Concept], resolution: int, loading: Loading, run: RunDirectory,
    load: Callable[[str], Encoder] = encoders.load,
) -> Judge:  # fmt: skip
    """Encoders and the subject's photos, cut as samples are, which are kept in the run's folder for its page."""

    def seen(paths: Sequence[Path]) -> list[Image.Image]:
        return [as_picture(crop(read_photo(path, loading), Region(resolution, resolution))) for path in paths]

    photos = [
        Photos(seen([photo.path for photo in concept.photos]), seen([photo.path for photo in concept.held_out]))
        for concept in concepts
    ]
    for number, (one, concept) in enumerate(zip(photos, concepts, strict=True)):
        for infix, images, files in (("", one.learnt, concept.photos), ("held-", one.held_out, concept.held_out)):
            for place, (image, photo) in enumerate(zip(images, files, strict=True)):
                name = f"{number}-{infix}{place:04d}.png"
                save_png(image, run.evaluated / "photos" / name, {"photo": photo.path.name})
    quiet_imported_libraries()
    return Judge(load(settings.dino), load(settings.clip), photos)


class Moments(Updates):
    """Draws, scores and keeps the plan's shots at given updates; `base` are the untouched model's pictures of them."""

    def __init__(
        self, log: RunLog, plan: Plan, judge: Judge, draw: Draw, base: Sequence[Image.Image],
        updates: set[int], early_stop: str = "none",
    ) -> None:  # fmt: skip
        self.runlog, self.plan, self.judge, self.draw, self.base, self.updates = log, plan, judge, draw, base, updates
        self.run = log.run
        self.early_stop = early_stop
        self.stopped_by: str | None = None  # why training was ended early

    def is_taken(self, update: int) -> bool:
        """Whether a moment is in evaluations.jsonl."""
        return any(row["update"] == update for row in self.run.evaluations.rows())

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        if update in self.updates and update < self.runlog.steps and trainer.is_global_zero:
            self.take(update)
            self.stopped_by = should_stop(
                list(joined(self.run.evaluations.rows(), self.run.probes.rows()).values()), self.early_stop
            )
            trainer.should_stop = trainer.should_stop or self.stopped_by is not None

    def take(self, update: int) -> None:
        """Draw the shots and keep what they score."""
        images: dict[int, Image.Image] = {}
        with progress(f"evaluation @ {update}", len(self.plan.shots)) as advance:

            def keep(index: int, image: Image.Image) -> None:
                images[index] = image
                advance()

            self.draw(self.plan.prompts, self.plan.seeds, keep)
        self.keep(update, [images[index] for index in range(len(images))])

    def keep(self, update: int, images: Sequence[Image.Image]) -> None:
        """Score the pictures of one moment; write and log pictures, scores and numbers."""
        scores = self.judge.score(self.plan.shots, images, self.base)
        folder = self.run.evaluated / f"update-{update:06d}"
        for index, (image, row) in enumerate(zip(images, scores.shots, strict=True)):
            row["file"] = f"{index:04d}.png"
            save_png(image, folder / row["file"], {"prompt": row["prompt"], "seed": row["seed"], "update": update})
        write_json(folder / "scores.json", {"update": update, "recipe": self.judge.recipe(), "shots": scores.shots})
        self.run.evaluations.append({"update": update, **scores.numbers})
        logger = self.runlog.logger
        if logger is not None:
            logger.log_metrics(scores.numbers, step=update)
            log_images(logger, images, [caption(row) for row in scores.shots], update, "evaluation")
            log_shots(logger, scores.shots, images, self.base, update)


def caption(row: dict[str, Any]) -> str:
    """A shot's prompt and scores in one line."""
    told = [f"{name} {row[name]:.2f}" for name in ("dino", "clip_t", "drift") if row.get(name) is not None]
    return " | ".join([row["prompt"], *told, *(["copy of a photo"] if row.get("is_copy") else [])])


def evaluated_updates(settings: Eval, steps: int) -> set[int]:
    """The updates at which a run of `steps` is evaluated."""
    return {update for update in spaced(steps, settings.moments) | set(settings.at) if update <= steps}


def spaced(steps: int, count: int) -> set[int]:
    """`count` updates evenly spaced up to and including `steps`."""
    return {round(steps * (place + 1) / count) for place in range(count)} - {0}
