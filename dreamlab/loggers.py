"""Where metrics and samples go besides metrics.jsonl: W&B (offline without a key), CSV, TensorBoard, or nowhere."""

import contextlib
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from PIL.Image import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dreamlab.errors import UserError, first_line
from dreamlab.progress import say
from dreamlab.secrets import without_secrets

if TYPE_CHECKING:
    from wandb import Run

START_S, FINISH_S = 30.0, 300.0  # that W&B's server may take to open a run, and to take the rest of it at its end
_given_up: list[bool] = []


def has_wandb_key() -> bool:
    """Whether W&B could log in without asking: a key in the environment or in .netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def open_wandb(
    folder: Path, name: str, project: str, mode: str, *, group: str | None, job_type: str, tags: Sequence[str]
) -> "Run":  # fmt: skip
    """A W&B run of its own, beside any others that are open in this process; offline where the server won't have it."""
    import wandb

    offline = mode == "offline" or (mode == "auto" and not has_wandb_key())
    chosen: Any = os.environ.get("WANDB_MODE") or ("offline" if offline else "online")
    bounds: dict[str, Any] = {"init_timeout": START_S, "finish_timeout": FINISH_S, "finish_timeout_raises": True}
    # The key never comes from us, code is not uploaded, and our own bars are not captured
    quiet = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False,
        **{key: value for key, value in bounds.items() if key in wandb.Settings.model_fields},  # 0.19 waits for ever
    )  # fmt: skip
    opened = partial(
        wandb.init, project=project, name=name, dir=folder, reinit="create_new", settings=quiet,
        group=group, job_type=job_type, tags=list(tags) or None,  # None leaves WANDB_TAGS its say
    )  # fmt: skip
    if chosen == "online" and not _given_up:
        try:
            return opened(mode="online")
        except (wandb.Error, ValueError) as error:  # the latter for a key of another form
            _give_up(error)
    return opened(mode="offline" if chosen == "online" else chosen)


def _give_up(error: Exception) -> None:
    """Say once in this process that the server is not to be had; later runs of a sweep don't ask again."""
    _given_up.append(True)
    kept = "the numbers stay in the run's wandb/, and `wandb sync` sends them later."
    say(f"W&B is not to be had ({_reason(error)}): {kept}")


def _reason(error: Exception) -> str:
    return without_secrets(first_line(error).rstrip("."))


class LastingWandbLogger(WandbLogger):
    """Lightning's, but that a run goes on where W&B's own program dies; later numbers are in metrics.jsonl alone."""

    is_dead = False

    def log_metrics(self, *values: Any, **named: Any) -> None:
        self._attempt(super().log_metrics, *values, **named)

    def log_image(self, *values: Any, **named: Any) -> None:
        self._attempt(super().log_image, *values, **named)

    def log_table(self, *values: Any, **named: Any) -> None:
        self._attempt(super().log_table, *values, **named)

    def _attempt(self, tell: Callable[..., None], *values: Any, **named: Any) -> None:
        import wandb

        if self.is_dead:
            return
        try:
            tell(*values, **named)
        except (ConnectionError, wandb.Error) as error:
            self.is_dead = True
            say(f"W&B's own program has died ({_reason(error)}): the run goes on, its numbers are in metrics.jsonl.")
            with contextlib.suppress(ConnectionError, wandb.Error):
                wandb.teardown()  # the next run of this process starts another


def _wandb(folder: Path, name: str, project: str, mode: str, **about: Any) -> Logger:
    experiment = open_wandb(folder, name, project, mode, **about)
    experiment.define_metric("trainer/global_step")  # Lightning's name for the update that a number belongs to
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return LastingWandbLogger(experiment=experiment)


def make_logger(
    kind: str, folder: Path, name: str, project: str, mode: str, *, group: str | None = None,
    job_type: str = "train", tags: Sequence[str] = (),
) -> Logger | None:  # fmt: skip
    """The logger of one run; None for `none`. UserError where its package is missing."""
    makers: dict[str, Any] = {
        "wandb": lambda: _wandb(folder, name, project, mode, group=group, job_type=job_type, tags=tags),
        "csv": lambda: CSVLogger(folder, name="", version=""),
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version="tensorboard"),
        "none": lambda: None,
    }
    try:
        logger: Logger | None = makers[kind]()
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError(f"logger={kind} needs a package that is not installed: {error}. Or use logger=none.") from error
    return logger


def log_images(
    logger: Logger | None, images: Sequence[Image], captions: Sequence[str], update: int, name: str = "samples"
) -> None:
    """Show pictures in W&B or TensorBoard; the other loggers keep numbers only."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, list(images), step=update, caption=list(captions))
    elif isinstance(logger, TensorBoardLogger):
        import numpy as np

        for caption, image in zip(captions, images, strict=True):
            logger.experiment.add_image(f"{name}/{caption}", np.asarray(image), update, dataformats="HWC")


def log_shots(
    logger: Logger | None, shots: Sequence[Mapping[str, Any]], images: Sequence[Image], base: Sequence[Image],
    update: int,
) -> None:  # fmt: skip
    """A table of an evaluation in W&B: each shot's prompt and scores, the untouched model's picture and the tuned's."""
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    columns = ["prompt", "kind", "seed", "dino", "clip_i", "clip_t", "drift", "is_copy"]
    rows = [
        [*(shot.get(column) for column in columns), wandb.Image(before), wandb.Image(after)]
        for shot, before, after in zip(shots, base, images, strict=True)
    ]
    logger.log_table("evaluation/shots", [*columns, "untouched", "tuned"], rows, step=update)


def close(logger: Logger | None, succeeded: bool) -> None:
    """Finish the run at its logger; others that are open in this process go on."""
    if logger is None:
        return
    logger.finalize("success" if succeeded else "failed")
    if isinstance(logger, LastingWandbLogger) and not logger.is_dead:
        try:
            logger.experiment.finish(exit_code=0 if succeeded else 1)
        except Exception as error:  # in time, or at all: the program that sends may have died
            _give_up(error)
