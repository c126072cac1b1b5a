"""How fast one variant trains or draws: four functions that each return a row of numbers.

Training goes the way of train.py, through assemble.py and feed.py with all the callbacks of a run but those that save
states, which take long once and nothing in between. The plain rows do the same work with diffusers alone. Called by
bench.py.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image

from dreamlab import assemble, feed, loggers
from dreamlab.checkpoints import ResumeState
from dreamlab.commands import Draws
from dreamlab.config import signature
from dreamlab.errors import UserError
from dreamlab.models import find, pick_device
from dreamlab.plain_loop import DTYPES, PlainLoop, plain_pipeline
from dreamlab.progress import progress
from dreamlab.resume import Start
from dreamlab.roofline import count_flops, floor_ms, peak_of
from dreamlab.runlog import RunLog
from dreamlab.runs import RunDirectory
from dreamlab.sample import Sampler, draw, make_scheduler
from dreamlab.schema import Train
from dreamlab.stopwatch import Clock, Stopwatch, finish, forget_peak, held_gib, spread
from dreamlab.subject import Subject

Row = dict[str, Any]
PLAIN_FAMILY, PARTS = "stable_diffusion", (["unet"], ["unet", "text_encoder"])  # what the plain loop can train
_flops: dict["Work", int] = {}


class Work(NamedTuple):
    """What decides the FLOPs of a micro-batch."""

    source: str
    side: int
    batch_size: int
    has_prior: bool
    trains_text: bool


def train_ours(config: Train, subject: Subject, warmup: int, updates: int) -> Row:
    """A run of dreamlab, as its own command would go; settings and photos are checked already."""
    began, device = time.perf_counter(), pick_device(config.device)
    clock = Clock(device, warmup, updates, max(1, updates // 3))
    config.steps = clock.steps
    run, start = RunDirectory(Path(config.out) / "run"), Start(signature(config, subject.digest))
    run.path.mkdir(parents=True)
    forget_peak(device)
    logger, succeeded = assemble.logger(config, subject, run), False
    try:
        model = assemble.base_model(config)
        sets = feed.image_sets(config, subject, model)
        module = assemble.module(config, model)
        batches = feed.batches(config, sets, start, module)
        log = RunLog(run, config.steps, logger=logger)
        average, captured = assemble.average(config, module), assemble.captured(config, module)
        trainer: Any = assemble.trainer(config, subject, [log], [clock], average, captured=captured)
        trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, ResumeState)]
        trainer.profiler = clock.profiler
        trainer.fit(module, batches)
        if trainer.global_step < clock.steps:  # Ctrl-C ends a run of ours cleanly
            raise KeyboardInterrupt
        succeeded = True
    finally:
        loggers.close(logger, succeeded)
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    row = {"set_up_s": (clock.first_s or began) - began, "loop_ms": clock.loop_ms, "peak_gib": held_gib(device)}
    return {**_timed(clock.watch.laps_ms()), **row, "trained": trained, **_work_of(config)}


def train_plainly(config: Train, subject: Subject, warmup: int, updates: int) -> Row:
    """The same with the plain loop, which knows fewer settings."""
    began, device = time.perf_counter(), pick_device(config.device)
    if config.precision not in DTYPES or config.accumulate > 1 or not _trains_parts(config):
        raise UserError(
            "The plain loop knows precision=fp32|bf16|fp16, accumulate=1 and, of Stable Diffusion 1 or 2,"
            " adapter.train=[unet] or both."
        )
    forget_peak(device)
    loop, work = _loop(config, device, config.model.gradient_checkpointing), _work(config)
    concept = subject.concepts[0]
    halves = [([photo.path for photo in concept.photos], concept.instance_prompt)]
    if work.has_prior:
        halves.append(([photo.path for photo in concept.own], concept.class_prompt))
    watch, first_s = Stopwatch(device), began
    with progress("plain loop", warmup + updates, unit="updates") as advance:
        batches = loop.batches(halves, config.batch_size, config.resolution)
        for number, (pixels, ids) in zip(range(1, warmup + updates + 1), batches, strict=False):
            loss = loop.update(pixels, ids)
            if number == 1:
                finish(device)
                first_s = time.perf_counter()
            if number >= warmup:
                watch.mark()
            advance(note=f"loss {loss:.3f}")
    row = {"set_up_s": first_s - began, "loop_ms": None, "peak_gib": held_gib(device)}
    trained = sum(weight.numel() for weight in loop.weights)
    return {**_timed(watch.laps_ms()), **row, "trained": trained, **_work_of(config)}


def with_roofline(row: Row, config: Train) -> Row:
    """The row with its floor and its share of it, where the card and what is trained are known ones."""
    device, work = pick_device(config.device), _work(config)
    unknown: Row = {**row, "flops": None, "floor_ms": None, "share": None}
    if not _trains_parts(config):
        return unknown
    if work not in _flops:
        try:
            _flops[work] = _count(config, work, device)
        except Exception as error:  # a single file, too little memory: the times are worth telling all the same
            return {**unknown, "uncounted": f"{type(error).__name__}: {error}"}
    flops, peak = _flops[work] * config.accumulate, peak_of(device)
    least = floor_ms(flops, row["trained"], peak) if peak else None
    return {**row, "flops": flops, "floor_ms": least, "share": least / row["ms"]["median"] if least else None}


def draw_ours(config: Train, draws: Draws, repeats: int) -> Row:
    """Pictures through the function that every sample of dreamlab comes from."""
    device, model, side = pick_device(config.device), assemble.base_model(config), config.resolution

    def once(steps: int) -> None:
        sampler = Sampler(draws.sampler, steps, config.sampling.guidance, "", side, side, draws.compile)
        draw(
            model, ["a photo of a dog"] * draws.batch_size, range(draws.batch_size), sampler, device=device,
            precision=config.precision, batch_size=draws.batch_size, on_image=lambda *_: None,
        )  # fmt: skip

    return _drawn(once, draws, repeats, device)


def draw_plainly(config: Train, draws: Draws, repeats: int) -> Row:
    """Pictures by calling diffusers' pipeline."""
    if config.model.family != PLAIN_FAMILY:
        raise UserError(
            f"Plain rows are of Stable Diffusion 1 and 2, not {config.model.family}. Leave them out: only=."
        )
    device = pick_device(config.device)
    pipe: Any = plain_pipeline(find(config.model.source), config.precision, device)
    pipe.scheduler = make_scheduler(draws.sampler, pipe.scheduler.config)

    def once(steps: int) -> None:
        pipe(
            "a photo of a dog", num_images_per_prompt=draws.batch_size, num_inference_steps=steps,
            guidance_scale=config.sampling.guidance, height=config.resolution, width=config.resolution,
        )  # fmt: skip

    return _drawn(once, draws, repeats, device)


def _drawn(once: Callable[[int], None], draws: Draws, repeats: int, device: torch.device) -> Row:
    """Time calls that end with pictures in the CPU's memory; a short one first, with the shapes of the others."""
    forget_peak(device)
    once(2)
    seconds = []
    with progress("drawing", repeats, unit="times") as advance:
        for _ in range(repeats):
            began = time.perf_counter()
            once(draws.steps)
            seconds.append(time.perf_counter() - began)
            advance()
    about = {"sampler": draws.sampler, "steps": draws.steps, "batch_size": draws.batch_size}
    return {"images_per_s": draws.batch_size / median(seconds), "s": seconds, "peak_gib": held_gib(device), **about}


def _timed(laps_ms: list[float]) -> Row:
    return {"ms": spread(laps_ms), "updates": len(laps_ms)}


def _trains_parts(config: Train) -> bool:
    """Whether it trains what the plain loop can."""
    is_plain = config.adapter.kind == "full" and config.model.family == PLAIN_FAMILY
    return is_plain and config.adapter.train in PARTS


def _work(config: Train) -> Work:
    trains_text = "text_encoder" in config.adapter.train
    return Work(config.model.source, config.resolution, config.batch_size, config.prior_weight > 0, trains_text)


def _work_of(config: Train) -> Row:
    """What tells whether two rows did the same work."""
    return {"precision": config.precision, "accumulate": config.accumulate, "work": _work(config)._asdict()}


def _loop(config: Train, device: torch.device, checkpointing: bool) -> PlainLoop:
    precision = config.precision if config.precision in DTYPES else "bf16"
    return PlainLoop(
        find(config.model.source), precision=precision, device=device, lr=config.lr,
        prior_weight=config.prior_weight, max_grad_norm=config.max_grad_norm or float("inf"),
        trains_text="text_encoder" in config.adapter.train, checkpointing=checkpointing,
    )  # fmt: skip


def _count(config: Train, work: Work, device: torch.device) -> int:
    """FLOPs of a plain forward and backward pass, without the VAE, of a micro-batch of noise."""
    loop = _loop(config, device, checkpointing=False)  # it would compute, and count, the forward pass twice
    count = work.batch_size * (1 + work.has_prior)
    ids = loop.tokenize("a photo of a dog").expand(count, -1).to(device)
    drawn = loop.drawn(torch.zeros(count, 3, work.side, work.side))
    return count_flops(lambda: loop.loss(*drawn, ids).backward(), device)


def noise_photos(folder: Path, count: int, side: int) -> Path:
    """`count` pictures of noise, `side` px wide, as JPEG; made once."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for number in range(count):
            stream = torch.Generator().manual_seed(number)
            pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=stream)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg", quality=95)
    return folder
