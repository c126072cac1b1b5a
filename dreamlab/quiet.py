"""Libraries that talk too much: their progress bars and hints would hide ours, so they speak up for errors only."""

import logging
import os
import warnings

CHATTY = (
    "bitsandbytes",
    "diffusers",
    "transformers",
    "pytorch_lightning",
    "lightning.fabric",
    "lightning.pytorch",
    "wandb",
)


def quiet_libraries() -> None:
    """Call before the libraries are imported; `DREAMLAB_VERBOSE=1` in the environment leaves them as they are."""
    if os.environ.get("DREAMLAB_VERBOSE"):
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    _errors_only()
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch\.jit|torch\.utils\._pytree")
    warnings.filterwarnings("ignore", message=r".*(LeafSpec|does not have many workers|lr_scheduler\.step).*")
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit")  # of 89 megapixels; at 179 it is an error


def _errors_only() -> None:
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_imported_libraries() -> None:
    """Call once they are imported: some set their own level then, and two draw bars while they read weights."""
    if os.environ.get("DREAMLAB_VERBOSE"):
        return
    _errors_only()
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
