"""GPU memory: about how much a run needs, told before it starts, and what to do when there is too little.

Peak = trained weights + optimizer moments + the larger of gradients and of what the forward pass keeps. The constants
are from Stable Diffusion 1.5 at 512 px on an H200 (docs/results.md). Called by train.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dreamlab.errors import UserError
from dreamlab.module import DreamBooth
from dreamlab.progress import console
from dreamlab.schema import Train

GIB = 2**30
MOMENT_BYTES = {"AdamW8bit": 2, "PagedAdamW8bit": 0, "Lion": 1, "SGD": 0, "Adafactor": 0}  # a weight; others 8
KEPT_BYTES = 354_000, 75_000  # for each latent pixel of an image: activations kept, or computed twice
NEEDS_GIB = {"24gb": 15.6, "16gb": 10.1, "12gb": 8.0, "8gb": 5.9}  # SD 1.5, 512 px, batch 1, text encoder too


def estimate_gib(config: Train, module: DreamBooth) -> float:
    """About the peak of a run's training in GiB."""
    trained = sum(weight.numel() for weight in module.trained.parameters() if weight.requires_grad)
    is_pure = config.precision == "bf16_pure"
    weights = sum(weight.numel() * weight.element_size() for weight in module.trained.parameters())
    moments = trained * MOMENT_BYTES.get(str(config.optimizer["_target_"]).rpartition(".")[2], 8)
    casts = 0 if is_pure or config.precision == "fp32" else 2 * sum(w.numel() for w in module.trained.parameters())
    images = config.batch_size * (2 if config.prior_weight > 0 else 1)
    pixels = (config.resolution / module.model.latent_factor()) ** 2
    forward = casts + images * pixels * KEPT_BYTES[config.model.gradient_checkpointing]
    is_half = is_pure or (config.precision != "fp32" and "bitsandbytes" in str(config.optimizer["_target_"]))
    return float(weights + moments + max(trained * (2 if is_half else 4), forward)) / GIB


def tell_need(config: Train, module: DreamBooth) -> None:
    """Say about how much memory training will take, where that is gigabytes of a GPU's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if module.model.family != "stable_diffusion":
        return  # the constants are of that one
    need = estimate_gib(config, module)
    if device.type != "cuda" or config.device == "cpu" or need < 1:
        return
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    more = "" if need < 0.95 * total else f" That is more than this GPU can hold. {_remedy(total)}"
    console.print(f"Training needs about {need:.1f} of {total:.0f} GiB.{more}", markup=False, highlight=False)


def _remedy(total_gib: float) -> str:
    fitting = [f"hardware={name} (about {need} GiB at 512 px)" for name, need in NEEDS_GIB.items() if need < total_gib]
    presets = f"Choose {' or '.join(fitting)}" if fitting else "Choose hardware=8gb adapter.train=[unet]"
    return f"{presets}, fewer pixels (resolution=384), or batch_size=1."


@contextmanager
def explained_shortage() -> Iterator[None]:
    """Out of memory in the block becomes a sentence that names what fits."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 0.0
        raise UserError(f"The GPU's memory ({total:.0f} GiB) is too small for this run. {_remedy(total)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            "This machine's memory is too small for this run. Choose fewer pixels (resolution=384), batch_size=1, or a"
            " smaller model."
        ) from error
