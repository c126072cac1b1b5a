"""GPU memory: about how much a run needs, told before it starts, and what to do when there is too little.

Peak = weights + optimizer moments + the larger of gradients and of what the forward pass keeps. The constants are from
Stable Diffusion 1.5 at 512 px, SDXL and Stable Diffusion 3.5 medium at 1024 (docs/results.md). Called by train.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dreamlab.errors import UserError
from dreamlab.models import pick_device
from dreamlab.module import DreamBooth
from dreamlab.progress import console
from dreamlab.schema import Train

GIB = 2**30
MOMENT_BYTES = {"AdamW8bit": 2, "PagedAdamW8bit": 0, "Lion": 1, "SGD": 0, "Adafactor": 0}  # a weight; others 8
KEPT_BYTES = {  # for each latent pixel of an image: activations kept, or computed twice
    "stable_diffusion": (241_000, 97_000),
    "sdxl": (446_000, 59_000),
    "stable_diffusion_3": (580_000, 89_000),
}
NEEDS_GIB = {"24gb": 14.7, "16gb": 9.2, "12gb": 8.1, "8gb": 5.9}  # SD 1.5, 512 px, batch 1, text encoder too


def estimate_gib(config: Train, module: DreamBooth) -> float:
    """About the peak of a run's training in GiB."""
    trained = sum(weight.numel() for weight in module.trained.parameters() if weight.requires_grad)
    is_pure = config.precision == "bf16_pure"
    weights = sum(weight.numel() * weight.element_size() for weight in module.trained.parameters())
    moments = trained * MOMENT_BYTES.get(str(config.optimizer["_target_"]).rpartition(".")[2], 8)
    recomputes = config.model.gradient_checkpointing
    # Autocast keeps what it makes of a weight that learns; of another the backward pass does, unless it recomputes
    cast = [
        weight.numel() for weight in module.trained.parameters()
        if weight.dtype == torch.float32 and (weight.requires_grad or not recomputes)
    ]  # fmt: skip
    casts = 0 if is_pure or config.precision == "fp32" else 2 * sum(cast)
    images = config.batch_size * (2 if config.prior_weight > 0 else 1)
    pixels = (config.resolution / module.model.latent_factor()) ** 2
    forward = casts + images * pixels * KEPT_BYTES[module.model.family][recomputes]
    is_half = is_pure or (config.precision != "fp32" and "bitsandbytes" in str(config.optimizer["_target_"]))
    return float(weights + moments + max(trained * (2 if is_half else 4), forward)) / GIB


def tell_need(config: Train, module: DreamBooth) -> None:
    """Say about how much memory training will take, where that is gigabytes of a GPU's."""
    if module.model.family not in KEPT_BYTES or pick_device(config.device).type != "cuda":
        return
    need, total = estimate_gib(config, module), _total_gib()
    if need < 1:
        return
    more = "" if need < 0.95 * total else f" That is more than this GPU can hold. {_remedy(total, config)}"
    console.print(f"Training needs about {need:.1f} of {total:.0f} GiB.{more}", markup=False, highlight=False)


def _total_gib() -> float:
    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 0.0


def _remedy(total_gib: float, config: Train) -> str:
    if config.model.family != "stable_diffusion":  # the presets' figures are of that one
        smaller = {
            "adapter=lora": config.adapter.kind == "full",
            "model.gradient_checkpointing=true": not config.model.gradient_checkpointing,
            "optimizer=adamw8bit": config.adapter.kind == "full",
        }
        words = [*(word for word, helps in smaller.items() if helps), f"resolution={config.resolution * 3 // 4}"]
        return f"Choose {', '.join(words)}, or batch_size=1."
    fitting = [f"hardware={name} (about {need} GiB at 512 px)" for name, need in NEEDS_GIB.items() if need < total_gib]
    presets = f"Choose {' or '.join(fitting)}" if fitting else "Choose hardware=8gb adapter.train=[unet]"
    return f"{presets}, fewer pixels (resolution=384), or batch_size=1."


@contextmanager
def explained_shortage(config: Train) -> Iterator[None]:
    """Out of memory in the block becomes a sentence that names what fits."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = f"The GPU's memory ({_total_gib():.0f} GiB) is too small for this run."
        raise UserError(f"{told} {_remedy(_total_gib(), config)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            "This machine's memory is too small for this run. Choose fewer pixels (resolution=384), batch_size=1, or a"
            " smaller model."
        ) from error
