"""The families there are, and what is known of each before any of it is loaded: a row of a table.

checks.py reads the rows, so that settings a family can't have are refused at once; a folder or file says itself which
family it is of. Nothing heavy is imported here.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamlab.errors import UserError

DIFFUSION = ("ddim", "pndm", "lms", "dpm++", "euler")  # keys of dreamlab.sample.SAMPLERS
FLOW = ("flow_euler",)


@dataclass(frozen=True)
class Row:
    """A family as settings know it."""

    place: str  # its class: module and name
    pipeline: str  # diffusers' word for it, in a folder's model_index.json
    trainable: tuple[str, ...]  # parts that adapter.train may name
    samplers: tuple[str, ...] = DIFFUSION  # those that can draw with it
    side_px: int = 8  # what a picture's sides are multiples of
    is_flow: bool = False  # flow matching, not diffusion
    optional: tuple[str, ...] = ()  # parts that model.without may leave out
    has_single_file: bool = True  # dreamlab.export knows its layout in one file, and kohya's names
    reads_new_words: bool = True  # diffusers' pipeline knows what a token of several rows is
    has_negative: bool = True  # guidance is away from another prompt
    reads_first: bool = False  # its text encoders are so large that drawing reads all prompts and puts them away


FAMILIES = {
    "stable_diffusion": Row(
        "dreamlab.models.stable_diffusion.StableDiffusion", "StableDiffusionPipeline", ("unet", "text_encoder")
    ),
    "sdxl": Row(
        "dreamlab.models.sdxl.StableDiffusionXL", "StableDiffusionXLPipeline",
        ("unet", "text_encoder", "text_encoder_2"),
    ),
    "stable_diffusion_3": Row(
        "dreamlab.models.stable_diffusion_3.StableDiffusion3", "StableDiffusion3Pipeline",
        ("transformer", "text_encoder", "text_encoder_2"), FLOW, 16, True, ("text_encoder_3",), has_single_file=False,
        reads_new_words=False, reads_first=True,
    ),
    "flux": Row(
        "dreamlab.models.flux.Flux", "FluxPipeline", ("transformer", "text_encoder"), FLOW, 16, True,
        has_single_file=False, reads_new_words=False, has_negative=False, reads_first=True,
    ),
}  # fmt: skip


def sampler_of(family: str, *, is_quick: bool = False) -> str:
    """What draws with a family unless somebody says otherwise; `is_quick`: what needs the fewest steps."""
    samplers = FAMILIES[family].samplers
    return "dpm++" if is_quick and "dpm++" in samplers else samplers[0]


def check_negative(key: str, prompt: str, family: str) -> None:
    """Raise UserError for a negative prompt that a family would pass over; `key` is the setting's name."""
    if prompt and not FAMILIES[family].has_negative:
        raise UserError(f"{key}={prompt!r}: {family} has no negative prompt. Leave it out.")


def family_in(source: str, revision: str | None = None, default: str = "stable_diffusion") -> str:
    """The family that a folder, hub id or file says it is of; `default` where it says nothing known."""
    said = _said(source, revision)
    return next((name for name, row in FAMILIES.items() if row.pipeline == said), default)


def _said(source: str, revision: str | None) -> Any:
    """A diffusers pipeline's name; None where there is none to be found."""
    path = Path(source).expanduser()
    if path.is_file():
        return _pipeline_of_file(path)
    if path.is_dir():
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the loader says what is wrong with it
            return json.loads((path / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        return None
    from diffusers import DiffusionPipeline

    from dreamlab.models.parts import told_by

    return told_by(DiffusionPipeline, source, revision).get("_class_name")


def _pipeline_of_file(path: Path) -> str | None:
    """The pipeline that the weights' names in one file are of."""
    marks = {
        "conditioner.embedders.1.model.ln_final.weight": "StableDiffusionXLPipeline",
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "StableDiffusion3Pipeline",
        "double_blocks.0.img_attn.qkv.weight": "FluxPipeline",
    }
    names = _names_in(path)
    return next((pipeline for mark, pipeline in marks.items() if mark in names), None)


def _names_in(path: Path) -> set[str]:
    """The names of the weights in a file; none where it can't be read, and whoever loads it says why."""
    import torch
    from safetensors import safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                return set(weights.keys())
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        return set(content.get("state_dict", content))
    except Exception:  # torch and safetensors each raise their own
        return set()
