"""`python -m dreamlab.bench`: how fast this machine trains and draws, beside what plain diffusers code does.

Variants run one after another in this process, each made by settings that `dreamlab.train` takes. One that fails is a
row with its message. speed.py measures, timings.py shows.
"""

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from dreamlab import entry, garbage
from dreamlab.commands import Bench, Draws
from dreamlab.config import conf_dir
from dreamlab.errors import UserError, did_you_mean
from dreamlab.quiet import quiet_imported_libraries

if TYPE_CHECKING:
    from dreamlab.schema import Train

Row = dict[str, Any]
# Training and nothing else: no class images to draw, nothing to sample, evaluate or log
ALONE = ("class_word=dog", "num_prior_images=4", "eval=none", "prompts=[]", "logger=none", "resume=never")
PHOTOS = 7  # as many as the tutorial has


class Variant(NamedTuple):
    """One row to be: training, or drawing where `draws` says how."""

    kind: str
    name: str
    is_plain: bool
    settings: list[str]
    draws: Draws | None = None


def variants(settings: Bench) -> list[Variant]:
    """What is to be measured, plain rows first; UserError for a name in `only` that there isn't."""
    found = [
        *(Variant("training", name, True, words) for name, words in settings.plain.items()),
        *(Variant("training", name, False, words) for name, words in settings.training.items()),
        *(Variant("sampling", name, d.plain, d.settings, d) for name, d in settings.sampling.items()),
    ]
    if settings.only is None:
        return found
    names = [variant.name for variant in found]
    for name in settings.only:
        if name not in names:
            raise UserError(f"only={name}: there is no such variant.{did_you_mean(name, names)}")
    return [variant for variant in found if variant.name in settings.only]


def composed(settings: Bench, words: list[str], folder: Path) -> "Train":
    """The settings of a run in `folder`, as `dreamlab.train` would understand the words."""
    from dreamlab.speed import noise_photos

    is_ready = GlobalHydra.instance().is_initialized()  # as it is inside of a command
    with contextlib.nullcontext() if is_ready else initialize_config_dir(conf_dir(), version_base="1.3"):
        config: Any = OmegaConf.to_object(compose("train", [*ALONE, *settings.settings, *words]))
    side = config.resolution
    config.class_dir = str(noise_photos(folder.parent / f"class-{side}", config.num_prior_images, side))
    config.instance_dir = settings.instance_dir or str(noise_photos(folder.parent / f"instance-{side}", PHOTOS, side))
    config.device, config.out, config.cache_dir = settings.device, str(folder), str(folder / "cache")
    return config


def measure(settings: Bench, variant: Variant, folder: Path) -> Row:
    """The numbers of a variant, whose files go into `folder`; its message where it fails."""
    about = {"kind": variant.kind, "name": variant.name, "is_plain": variant.is_plain, "settings": variant.settings}
    from dreamlab import speed
    from dreamlab.checks import check

    try:
        with _switches_kept():
            config, subject = check(composed(settings, variant.settings, folder))
            if variant.draws:
                draw = speed.draw_plainly if variant.is_plain else speed.draw_ours
                return {**about, **draw(config, variant.draws, settings.repeats)}
            train = speed.train_plainly if variant.is_plain else speed.train_ours
            row = train(config, subject, settings.warmup, settings.updates)
            _free()
            return {**about, **speed.with_roofline(row, config)}
    except Exception as error:  # whatever it is, the other variants go on
        reason = (str(error).strip().splitlines() or [""])[0]
        return {**about, "error": reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"}


@contextlib.contextmanager
def _switches_kept() -> Iterator[None]:
    """What a variant switches for the whole process is put back: the next one is to find what a fresh one has."""
    import torch
    from torch.backends import cuda, cudnn

    owners: list[tuple[Any, str]] = [
        (cuda.matmul, "allow_tf32"), (cudnn, "allow_tf32"), (cudnn, "benchmark"), (cudnn, "deterministic"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name in owners]
    precision, is_exact = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_exact)
        for (owner, name), value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def _free() -> None:
    """Give back what the last variant held, so that the next finds memory as a fresh process would."""
    import torch

    torch.compiler.reset()
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is glibc
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bench(settings: Bench) -> Path:
    """Measure what `settings` ask for; returns the JSON file."""
    for key in ("warmup", "updates", "repeats"):
        if getattr(settings, key) < 1:
            raise UserError(f"{key}={getattr(settings, key)}: give a whole number, 1 or more.")
    chosen, out = variants(settings), Path(settings.out).expanduser()
    if out.suffix != ".json":
        raise UserError(f"out={settings.out}: give a file that ends in .json.")
    import torch

    from dreamlab import speed, timings  # noqa: F401  # speed now, so that no variant's set-up is to import libraries
    from dreamlab.progress import console
    from dreamlab.runs import environment

    quiet_imported_libraries()
    garbage.set_aside()
    machine = {
        **environment(),
        "threads": torch.get_num_threads(),
        "model": settings.model.source,
        "shared": settings.settings,
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dreamlab-bench-") as place:
        for number, variant in enumerate(chosen):
            console.print(f"{number + 1}/{len(chosen)} {variant.kind}: {variant.name}", markup=False, highlight=False)
            rows.append(measure(settings, variant, Path(place) / str(number)))
            _free()
            timings.write(out, machine, timings.compared(rows))  # now: the next one may be interrupted
    timings.show(machine, timings.compared(rows))
    print(out)
    return out


def _act(settings: Bench) -> None:
    words = HydraConfig.get().overrides.task
    settings.settings = [*(word for word in words if word.startswith(("model=", "model."))), *settings.settings]
    bench(settings)


def main() -> None:
    """The console command dreamlab-bench."""
    entry.run("bench", Bench, _act)


if __name__ == "__main__":
    main()
