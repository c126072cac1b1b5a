"""The model card: what a shared model says of itself, as Markdown behind the YAML header that the hub reads.

Words come from run directories, so from people: in the header the YAML library quotes them, in the text they stand
as code. Folders of this machine are named by their last part only.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import safe_open

from dreamlab.models import BUNDLED, family_of
from dreamlab.models.families import FAMILIES
from dreamlab.report import sample_updates, sheet
from dreamlab.runs import run_of, update_of

# The settings of a run that its file and its card carry along
RECIPE = (
    "lr", "text_encoder_lr", "steps", "batch_size", "accumulate", "prior_weight", "num_prior_images", "seed",
    "resolution", "precision", "adapter",
)  # fmt: skip
LICENCE_NAMES = {"pocket": "imagenet-terms-of-access"}  # research and education only
LICENCE = """\
The licence of the base model, and its rules on use, apply to this model too. A model of a person or of somebody's work
should be shared only with their consent. The training photos are not part of this repository.
"""


def provenance(given: str) -> dict[str, Any]:
    """What made a model: a run's base model, words, recipe and versions; for any other model, where it comes from."""
    run = run_of(given)
    if run is None:
        is_here = Path(given).expanduser().exists()
        return {"base_model": _public(given), "family": family_of(given) if is_here else "stable_diffusion"}
    card, config = run.read_card(), run.read_config()
    recipe = {key: config.get(key) for key in RECIPE} | {"adapter": _adapter(config.get("adapter", {}))}
    if update_of(Path(given)) >= 0 and run.path != Path(given).expanduser().resolve():  # a snapshot
        recipe["steps"] = update_of(Path(given))
    return {
        "base_model": _public(config.get("model", {}).get("source", "")),
        "family": config.get("model", {}).get("family", "stable_diffusion"),
        **{key: config.get(key, "") for key in ("token", "class_word")},
        **{key: card.get(key, "") for key in ("instance_prompt", "class_prompt")},
        "recipe": recipe,
        "versions": card.get("versions", {}),
    }


def card_files(given: str, out: Path, repo: str | None, picture: str = "grid.png") -> dict[str, bytes]:
    """README.md for the export `out` of the model `given` and, where its run has samples, the picture it shows."""
    run, files = run_of(given), dict[str, bytes]()
    if run is not None and sample_updates(run):
        content = io.BytesIO()
        sheet(run, with_photos=False, until=provenance(given)["recipe"]["steps"]).save(content, "PNG")
        files[picture] = content.getvalue()
    text = model_card(provenance(given), out, repo, picture if files else None)
    return {"README.md": text.encode(), **files}


def model_card(about: Mapping[str, Any], out: Path, repo: str | None, picture: str | None) -> str:
    """The card of the file or folder `out`, about what `provenance` says, showing `picture`."""
    base = str(about["base_model"])
    is_on_hub = _is_hub_id(base)
    header = ModelCardData(
        license="other", license_name=LICENCE_NAMES.get(base, "that-of-the-base-model"),
        base_model=base if is_on_hub else None,
        library_name="diffusers", pipeline_tag="text-to-image", tags=["dreambooth", "stable-diffusion", "dreamlab"],
        instance_prompt=_one_line(about.get("instance_prompt", "")) or None,
    )  # fmt: skip
    named = f"[{base}](https://huggingface.co/{base})" if is_on_hub else _code(base)
    words = {"token": "Token", "class_word": "Class word", "instance_prompt": "Prompt of the subject",
             "class_prompt": "Prompt of its class"}  # fmt: skip
    facts = [f"- {label}: {_code(about[key])}" for key, label in words.items() if about.get(key)]
    lists = [
        f"\n## {title}\n\n" + "\n".join(f"- {_code(key)}: {_code(value)}" for key, value in about[name].items())
        for name, title in (("recipe", "Recipe"), ("versions", "Versions"))
        if about.get(name)
    ]
    return "\n".join([
        f"---\n{header.to_yaml(line_break=chr(10)).strip()}\n---\n",
        f"# {_plain((repo or out.stem).rsplit('/', 1)[-1])}\n",
        "A Stable Diffusion that was taught a subject by DreamBooth ([arXiv 2208.12242](https://arxiv.org/abs/2208.12242)).\n",
        *([f"![samples of the untouched and of the tuned model]({picture})\n"] if picture else []),
        f"- Base model: {named}",
        *facts,
        f"\n## How to load it\n\n{_loading(about, out, repo, base if is_on_hub else None)}",
        *lists,
        f"\n## Licence\n\n{LICENCE}",
    ])  # fmt: skip


def _loading(about: Mapping[str, Any], out: Path, repo: str | None, base: str | None) -> str:
    prompt = _one_line(about.get("instance_prompt") or "a photo of a dog")
    drawing = f"image = pipe({prompt!r}).images[0]"
    pipeline = FAMILIES[about.get("family", "stable_diffusion")].pipeline
    opening = f"```python\nfrom diffusers import {pipeline}\n\n"
    opened = f"pipe = {pipeline}.from_pretrained({base or 'the base model'!r})"
    word = _metadata(out).get("dreamlab.word")
    if word:
        loaded = _loading_word(word, out, repo, str(about.get("family", "stable_diffusion")))
        return (
            f"A new word, {_code(word)}: AUTOMATIC1111 and ComfyUI read {_code(out.name)} from their folder of"
            f" embeddings, beside the base model; ComfyUI calls it {_code(f'embedding:{out.stem}')}. In Python:\n\n"
            f"{opening}{opened}\n{loaded}\n{drawing}\n```"
        )
    if is_adapter(out):
        loaded = f"pipe.load_lora_weights({repo or '.'!r}, weight_name={out.name!r})"
        return (
            f"An adapter: AUTOMATIC1111 and ComfyUI read {_code(out.name)} from their folder of LoRAs, beside the base"
            f" model. In Python (LoRA only):\n\n{opening}{opened}\n{loaded}\n{drawing}\n```"
        )
    if out.suffix not in (".safetensors", ".ckpt"):
        return f"{opening}pipe = {pipeline}.from_pretrained({repo or out.name!r})\n{drawing}\n```"
    file = f"https://huggingface.co/{repo}/blob/main/{out.name}" if repo else out.name
    config = f", config={base!r}" if base else ""
    return (
        f"AUTOMATIC1111 and ComfyUI read {_code(out.name)} from their folder of checkpoints. In Python:\n\n"
        f"{opening}pipe = {pipeline}.from_single_file({file!r}{config})\n{drawing}\n```"
    )


def _loading_word(word: str, out: Path, repo: str | None, family: str) -> str:
    """How diffusers is given a new word: an entry of the file for each text encoder where there are two."""
    if family != "sdxl":
        return f"pipe.load_textual_inversion({repo or '.'!r}, weight_name={out.name!r})"
    file = f"hf_hub_download({repo!r}, {out.name!r})" if repo else repr(out.name)
    fetching = "from huggingface_hub import hf_hub_download\n" if repo else ""
    opened = f"{fetching}from safetensors.torch import load_file\n\n"
    lines = [
        f"pipe.load_textual_inversion(rows[{key!r}], token={word!r}, text_encoder=pipe.text_encoder{suffix},"
        f" tokenizer=pipe.tokenizer{suffix})"
        for key, suffix in (("clip_l", ""), ("clip_g", "_2"))
    ]
    return "\n".join([f"{opened}rows = load_file({file})", *lines])


_TOLD = ("then", "switch_step", "vectors", "initializer", "rank", "alpha", "targets", "train")


def _adapter(settings: Mapping[str, Any]) -> str:
    """What was trained, in a few words: lora rank=8 alpha=8 ..."""
    told = [f"{key}={settings[key]}" for key in _TOLD if settings.get(key) is not None]
    return " ".join([str(settings.get("kind", "full")), *told])


def is_adapter(file: Path) -> bool:
    """Whether an exported file is an adapter in kohya's format."""
    return "ss_network_module" in _metadata(file)


def _metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says of itself; nothing of what is none."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    with safe_open(file, "pt") as weights:
        return dict(weights.metadata() or {})


def _public(source: str) -> str:
    """A hub id or a bundled model as it is; of a place on this machine the last part."""
    return source if source in BUNDLED or _is_hub_id(source) else Path(source).name


def _is_hub_id(source: str) -> bool:
    if Path(source).expanduser().exists() or source.count("/") != 1:
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _one_line(text: Any) -> str:
    """The text on one line, without control characters and other things that nobody sees."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def _plain(text: str) -> str:
    return "".join(letter for letter in _one_line(text) if letter.isalnum() or letter in " .-_")


def _code(text: Any) -> str:
    """Inline code, in which no Markdown or HTML is read: its fence is longer than any in the text."""
    line = _one_line(text)
    longest = max(map(len, re.findall("`+", line)), default=0)
    return f"`{line}`" if longest == 0 else f"{'`' * (longest + 1)} {line} {'`' * (longest + 1)}"
