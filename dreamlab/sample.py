"""Drawing images: `python -m dreamlab.sample`, and the one function that every sample of the project comes from.

Image k of a prompt starts from noise made of seed + k alone, on the CPU, so it is the same picture whatever the batch
size and beside whatever other prompts. Sampling leaves the networks as it found them: dtype, mode, gradients and the
global random state.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamlab import entry
from dreamlab.commands import Sample
from dreamlab.errors import UserError, did_you_mean
from dreamlab.models.families import FAMILIES, check_negative, sampler_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from dreamlab.models import Family

# Our name -> diffusers' class and what it needs beside the model's own scheduler config
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
}
FLOW_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # of flow matching
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
}
DECODED_PX = 4 * 512 * 512  # at a time: enough to keep a GPU busy, and a GiB or two


@dataclass(frozen=True)
class Sampler:
    """How images are drawn, apart from prompt and seed; height and width in pixels."""

    name: str
    steps: int
    guidance: float
    negative_prompt: str
    height: int
    width: int
    is_compiled: bool = False  # the denoiser; other kernels round differently


def make_scheduler(name: str, config: Any) -> Any:
    """Diffusers' scheduler for our sampler `name`, on the noise schedule of the model's scheduler `config`."""
    import diffusers

    class_name, options = {**SAMPLERS, **FLOW_SAMPLERS}[name]
    return getattr(diffusers, class_name).from_config(config, **options)


def keep_on_cpu(scheduler: Any) -> Any:
    """A scheduler whose timesteps and sigmas stay on the CPU, where it reads them: a GPU would wait at each step."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def called(*args: Any, device: Any = None, **settings: Any) -> None:
        set_timesteps(*args, device="cpu", **settings)

    scheduler.set_timesteps = called
    return scheduler


def filled(items: Sequence[Any], batch_size: int) -> list[Any]:
    """The items, with the first ones again where a last batch is half full or more.

    A GPU's libraries choose kernels for each shape anew, which takes longer than a few images more.
    """
    missing = -len(items) % batch_size
    return [*items, *items[:missing]] if 0 < 2 * missing <= batch_size < len(items) else [*items]


def draw(
    model: "Family", prompts: Sequence[str], seeds: Sequence[int], sampler: Sampler, *,
    device: "torch.device", precision: str, batch_size: int, on_image: Callable[[int, "Image"], None],
) -> None:  # fmt: skip
    """Draw `prompts[k]` from `seeds[k]` for every k, `batch_size` at a time, handing each to `on_image(k, image)`."""
    import torch

    from dreamlab.halves import decoding_in_parts, drawing_in
    from dreamlab.pictures import as_pictures
    from dreamlab.precision import autocast, forward_dtype
    from dreamlab.resting import told
    from dreamlab.twins import once

    check_sampler("sampler", sampler.name, model.family)
    pipe, count = model.pipeline(), len(prompts)
    if device.type == "cuda":
        prompts, seeds = filled(prompts, batch_size), filled(seeds, batch_size)
    own, halved = pipe.scheduler.config, drawing_in(pipe, forward_dtype(precision), device, sampler.is_compiled)
    words = told(model, pipe, prompts, sampler.negative_prompt, device)
    parts = decoding_in_parts(pipe.vae, max(1, DECODED_PX // (sampler.height * sampler.width)))
    shared = once(getattr(pipe, "unet", None), sampler.guidance)
    with halved, shared, parts, torch.no_grad(), autocast(precision, device), words as words_of:
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            # PNDM and LMS keep state between calls, so each batch gets a scheduler of its own
            pipe.scheduler = keep_on_cpu(make_scheduler(sampler.name, own))
            images = pipe(
                **words_of(batch), output_type="pt",
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[batch]],
                num_inference_steps=sampler.steps, guidance_scale=sampler.guidance,
                height=sampler.height, width=sampler.width,
            ).images  # fmt: skip
            for number, picture in enumerate(as_pictures(images[: count - start]), start):
                on_image(number, picture)


def check_sampler(key: str, name: str, family: str) -> None:
    """Raise UserError where a sampler is of another kind of model; `key` is the setting's name."""
    fitting = FAMILIES[family].samplers
    if name not in fitting:
        raise UserError(f"{key}={name} can't draw with a model of family {family}. Use {' or '.join(fitting)}.")


def _check(settings: Sample) -> None:
    known = (*SAMPLERS, *FLOW_SAMPLERS)
    if settings.sampler is not None and settings.sampler not in known:
        raise UserError(f"sampler={settings.sampler}: unknown sampler.{did_you_mean(settings.sampler, known)}")
    for key in ("n", "steps", "batch_size", "height", "width"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value}: give a whole number, 1 or more.")
    for key in ("height", "width"):
        value = getattr(settings, key)
        if value is not None and value % 8:
            raise UserError(f"{key}={value}: give a multiple of 8 pixels.")
    if not settings.prompt.strip():
        raise UserError("prompt is empty. Say what to draw: prompt='a photo of a zwx dog'")
    if not all(prompt.strip() for prompt in settings.prompt.split("|")):
        raise UserError(f"prompt={settings.prompt!r}: there is nothing on one side of a |, which separates prompts.")


def _scales(settings: Sample) -> list[float]:
    """The guidance scales: those given, else the one of the run's own samples, else 7.5, the field's habit."""
    from dreamlab.runs import run_of

    given = settings.guidance
    if given is None:
        run = run_of(settings.run)
        given = run.read_config().get("sampling", {}).get("guidance", 7.5) if run else 7.5
    scales = given if isinstance(given, list) else [given]
    numbers = [scale for scale in scales if isinstance(scale, int | float) and not isinstance(scale, bool)]
    if not scales or numbers != scales or not all(0 <= scale < math.inf for scale in numbers):
        raise UserError(f"guidance={given}: give a number, 0 or more, or several such as guidance=[3,5,7.5].")
    return list(dict.fromkeys(float(scale) for scale in numbers))


def _folder_for(settings: Sample) -> Path:
    """Where the images go: `out`, or a folder named after the prompt (and the snapshot), in the run or in outputs."""
    from dreamlab.runs import run_of

    if settings.out:
        return Path(settings.out).expanduser()
    slug = re.sub(r"\W+", "-", settings.prompt).strip("-")[:60] or "prompt"
    given, run = Path(settings.run).expanduser(), run_of(settings.run)
    if run is None:
        return Path("outputs") / "samples" / slug
    is_snapshot = given.resolve() != run.path
    return (given.parent.parent if is_snapshot else given) / "samples" / (slug + f"-{given.name}" * is_snapshot)


def sample(settings: Sample) -> Path:
    """Draw what `settings` ask for, prompts x guidance scales x seeds; returns the folder of images and grid."""
    _check(settings)
    from dreamlab.models import family_of, find, load, pick_device
    from dreamlab.pictures import grid, save_png
    from dreamlab.precision import check_forward
    from dreamlab.runs import source_of

    check_forward(settings.precision)
    scales, device, source = _scales(settings), pick_device(settings.device), find(source_of(settings.run))
    family = family_of(source)
    settings = replace(settings, sampler=settings.sampler or sampler_of(family))
    check_sampler("sampler", str(settings.sampler), family)
    check_negative("negative_prompt", settings.negative_prompt, family)
    step_px = FAMILIES[family].side_px
    if any(side is not None and side % step_px for side in (settings.height, settings.width)):
        raise UserError(f"height={settings.height}, width={settings.width}: {family} takes multiples of {step_px} px.")
    model = load(family, source, config=settings.config)
    rows = [(prompt.strip(), scale) for prompt in settings.prompt.split("|") for scale in scales]
    out = _folder_for(settings)
    images = _draw_rows(model, rows, settings, device, out)
    labels = [prompt if len(scales) == 1 else f"{prompt}\nguidance {scale:g}" for prompt, scale in rows]
    columns = [f"seed {settings.seed + k}" for k in range(settings.n)]
    sheet = grid(list(zip(labels, images, strict=True)), columns, min(320, max(160, *images[0][0].size)))
    save_png(sheet, out / "grid.png", {"prompt": settings.prompt, "model": settings.run, "guidance": scales})
    print(out / "grid.png")
    return out


def _draw_rows(
    model: "Family", rows: Sequence[tuple[str, float]], settings: Sample, device: "torch.device", out: Path
) -> "list[list[Image]]":
    """Draw `n` seeds of each (prompt, guidance scale), each into a file of its own, numbered row by row."""
    from dreamlab.pictures import save_png
    from dreamlab.progress import progress

    n, side, images = settings.n, model.default_resolution(), dict[int, "Image"]()

    def keep(sampler: Sampler, numbers: Sequence[int], index: int, image: "Image") -> None:
        number = numbers[index]
        images[number] = image
        shown = {key: value for key, value in asdict(sampler).items() if key not in ("name", "is_compiled")}
        about = {"prompt": rows[number // n][0], "seed": settings.seed + number % n, "model": settings.run}
        save_png(image, out / f"{number:04d}.png", {**about, "sampler": sampler.name, **shown})
        advance()

    with progress("sampling", len(rows) * n) as advance:
        for scale in dict.fromkeys(scale for _, scale in rows):
            sampler = Sampler(
                str(settings.sampler), settings.steps, scale, settings.negative_prompt,
                settings.height or side, settings.width or side, settings.compile,
            )  # fmt: skip
            numbers = [number for number in range(len(rows) * n) if rows[number // n][1] == scale]
            draw(
                model, [rows[number // n][0] for number in numbers], [settings.seed + number % n for number in numbers],
                sampler, device=device, precision=settings.precision, batch_size=settings.batch_size,
                on_image=functools.partial(keep, sampler, numbers),
            )  # fmt: skip
    return [[images[row * n + k] for k in range(n)] for row in range(len(rows))]


def main() -> None:
    """The console command dreamlab-sample."""
    entry.run("sample", Sample, sample)


if __name__ == "__main__":
    main()
