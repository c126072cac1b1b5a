"""`python -m dreamlab.export`: one file for A1111 and ComfyUI, or a diffusers folder, of a run or any diffusers model.

The file is named by single_file.py's keys and carries what made it in its metadata. It appears whole or not at all.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import UserError, did_you_mean, explained
from dreamlab.quiet import quiet_libraries
from dreamlab.schema import Export

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlab.models.stable_diffusion import StableDiffusion

FORMATS = ("safetensors", "ckpt", "diffusers")
DTYPES = ("fp16", "fp32")
# The settings of a run that its file carries along
RECIPE = (
    "lr", "text_encoder_lr", "steps", "batch_size", "accumulate", "prior_weight", "num_prior_images", "seed",
    "resolution", "precision",
)  # fmt: skip


def single_file_state(model: "StableDiffusion") -> "dict[str, Tensor]":
    """Every weight of a loaded Stable Diffusion 1 or 2 under its original name, float32."""
    from dreamlab.single_file import to_single_file

    layers = model.unet.config.layers_per_block
    if not isinstance(layers, int) and len(set(layers)) > 1:
        raise UserError(
            "This model's blocks differ in depth (pocket's do), which the original layout has no names for and no other"
            " program reads. Export a folder instead: format=diffusers."
        )
    parts = {name: part.state_dict() for name, part in model.parts().items()}
    text = model.text_encoder.config
    return to_single_file(
        parts["unet"], parts["vae"], parts["text_encoder"], model.alphas_cumprod,
        open_clip=text.hidden_act == "gelu",  # OpenCLIP's towers; CLIP's own have quick_gelu
    )  # fmt: skip


def halved(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The same with floating-point weights in fp16; integers, such as position ids, stay."""
    return {name: weight.half() if weight.is_floating_point() else weight for name, weight in state.items()}


def description(run: Path) -> dict[str, str]:
    """What a file says of where it comes from: the recipe and versions of a run; strings only, as safetensors asks."""
    from dreamlab.runs import RunDirectory

    card, config = RunDirectory(run).read_card(), RunDirectory(run).read_config()
    recipe = {key: config.get(key) for key in RECIPE}
    return {
        "format": "pt",
        "dreamlab.base_model": str(config.get("model", {}).get("source", "")),
        "dreamlab.token": str(config.get("token", "")),
        "dreamlab.class_word": str(config.get("class_word", "")),
        "dreamlab.instance_prompt": str(card.get("instance_prompt", "")),
        "dreamlab.recipe": json.dumps(recipe),
        "dreamlab.versions": json.dumps(card.get("versions", {})),
    }


def _check(settings: Export) -> None:
    for key, choices in (("format", FORMATS), ("dtype", DTYPES)):
        value = getattr(settings, key)
        if value not in choices:
            raise UserError(f"{key}={value}: unknown {key}.{did_you_mean(value, choices)}")


def export(settings: Export) -> Path:
    """Write what `settings` ask for; returns the file or folder."""
    _check(settings)
    from dreamlab.models import load
    from dreamlab.runs import source_of, written_whole

    source, run = source_of(settings.run), Path(settings.run).expanduser()
    stem = re.sub(r"\W+", "-", run.name).strip("-") or "model"
    suffix = "" if settings.format == "diffusers" else f".{settings.format}"
    out = Path(settings.out or f"outputs/exports/{stem}-{settings.dtype}{suffix}").expanduser()
    if out.exists() and not settings.overwrite:
        raise UserError(f"{out} exists already. Choose another out=..., or overwrite=true.")
    model: Any = load("stable_diffusion", source, vae=settings.vae, config=settings.config)
    with written_whole(out) as temporary:
        if settings.format == "diffusers":
            _write_folder(model, temporary, settings.dtype)
        else:
            state = single_file_state(model)
            _write_file(halved(state) if settings.dtype == "fp16" else state, temporary, settings.format, run)
    print(out)
    return out


def _write_folder(model: "StableDiffusion", folder: Path, dtype: str) -> None:
    if dtype == "fp16":
        for part in model.parts().values():
            part.half()
    model.pipeline().save_pretrained(folder)


def _write_file(state: "dict[str, Tensor]", file: Path, kind: str, run: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {name: weight.contiguous() for name, weight in state.items()}
    if kind == "safetensors":
        save_file(state, file, description(run))
    else:
        torch.save({"state_dict": state, "dreamlab": description(run)}, file)


@hydra.main(config_path=conf_dir(), config_name="export", version_base="1.3")
def _command(raw: DictConfig) -> None:
    with explained():  # here too: Hydra would print a line of its own first
        settings: Any = OmegaConf.to_object(raw)
        export(settings)


def main() -> None:
    """The console command dreamlab-export."""
    register_schemas()
    quiet_libraries()
    with explained(setting_names(Export)):
        _command()


if __name__ == "__main__":
    main()
