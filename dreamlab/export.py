"""`python -m dreamlab.export`: one file for A1111 and ComfyUI, or a diffusers folder, of a run or any diffusers model.

The file is named by single_file.py's keys, by kohya.py's where it is an adapter alone, by embedding_files.py's where it
is a new word alone, and says in its metadata what made it. It appears whole or not at all.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamlab import entry
from dreamlab.commands import Export
from dreamlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlab.models import Family

FORMATS = ("safetensors", "ckpt", "diffusers", "kohya", "embedding")
DTYPES = ("fp16", "fp32")


def single_file_state(model: Any) -> "dict[str, Tensor]":
    """Every weight of a loaded Stable Diffusion 1, 2 or XL under its original name, float32."""
    from dreamlab.single_file import to_single_file, to_single_file_xl

    layers = model.unet.config.layers_per_block
    if not isinstance(layers, int) and len(set(layers)) > 1:
        raise UserError(
            "This model's blocks differ in depth (pocket's do), which the original layout has no names for and no other"
            " program reads. Export a folder instead: format=diffusers."
        )
    parts = {name: part.state_dict() for name, part in model.parts().items()}
    _drop_words(model, parts)
    if model.family == "sdxl":
        return to_single_file_xl(parts)
    text = model.text_encoder.config
    return to_single_file(
        parts["unet"], parts["vae"], parts["text_encoder"], model.alphas_cumprod,
        open_clip=text.hidden_act == "gelu",  # OpenCLIP's towers; CLIP's own have quick_gelu
    )  # fmt: skip


def _drop_words(model: "Family", parts: "dict[str, dict[str, Tensor]]") -> None:
    """Cut rows of new words off their tables: programs that read one file expect the published size."""
    from dreamlab.inversion import added

    for part, tokenizer in model.tokenizers().items() if added(model) else ():
        (name,) = (name for name in parts[part] if name.endswith("token_embedding.weight"))
        parts[part][name] = parts[part][name][: tokenizer.vocab_size]


def halved(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The same with floating-point weights in fp16; integers, such as position ids, stay."""
    return {name: weight.half() if weight.is_floating_point() else weight for name, weight in state.items()}


def description(given: str) -> dict[str, str]:
    """What a file says of where it comes from: the recipe and versions of a run; strings only, as safetensors asks."""
    from dreamlab.card import provenance

    about = provenance(given)
    words = {key: str(about.get(key, "")) for key in ("base_model", "token", "class_word", "instance_prompt")}
    lists = {key: json.dumps(about.get(key, {})) for key in ("recipe", "versions")}
    return {"format": "pt", **{f"dreamlab.{key}": value for key, value in {**words, **lists}.items()}}


def _check(settings: Export) -> None:
    for key, choices in (("format", FORMATS), ("dtype", DTYPES)):
        value = getattr(settings, key)
        if value not in choices:
            raise UserError(f"{key}={value}: unknown {key}.{did_you_mean(value, choices)}")
    if settings.push is not None:
        from dreamlab.push import check_push

        check_push(settings.push)


def export(settings: Export) -> Path:
    """Write what `settings` ask for; returns the file or folder."""
    _check(settings)
    from dreamlab.models import family_of, find, load
    from dreamlab.models.families import FAMILIES
    from dreamlab.runs import source_of
    from dreamlab.whole import written_whole

    source, out = find(source_of(settings.run)), _place_for(settings)
    written = [out, out.with_suffix(".md")] if settings.card and settings.format != "diffusers" else [out]
    for path in written:
        if path.exists() and not settings.overwrite:
            raise UserError(f"{path} exists already. Choose another out=..., or overwrite=true.")
    writers = {"diffusers": _write_folder, "kohya": _write_adapter, "embedding": _write_word}
    write = writers.get(settings.format, _write_single_file)
    _check_content(settings.format, Path(source).expanduser())
    family = family_of(source)
    if settings.format != "diffusers" and not FAMILIES[family].has_single_file:
        raise UserError(
            f"format={settings.format}: {family}'s layout in one file is not known here. Use format=diffusers or, of an"
            " adapter, the file in the run's model/ folder, which diffusers reads."
        )
    model: Any = load(family, source, vae=settings.vae, config=settings.config)
    with written_whole(out) as temporary:
        write(model, temporary, settings)
    print(out)
    _tell_words(model, settings)
    if settings.card:
        _write_card(settings, out)
    if settings.push is not None:
        from dreamlab.card import card_files
        from dreamlab.push import push

        print(push(out, settings.push, settings.private, card_files(settings.run, out, settings.push)))
    return out


def _check_content(format: str, folder: Path) -> None:
    """Before any weight is loaded: UserError where a run has learnt nothing that this format can hold."""
    from dreamlab.kohya import read_adapter
    from dreamlab.models import is_snapshot
    from dreamlab.snapshots import read_about

    about = read_about(folder) if is_snapshot(folder) else {}
    if format in ("safetensors", "ckpt", "kohya") and about.get("tokens") and not about["parts"]:
        told = ", ".join(about["tokens"])
        raise UserError(
            f"format={format} has no place for new words, and {told} is all that was learnt here. Use format=embedding,"
            " or format=diffusers for a whole model that knows it."
        )
    if format == "kohya":
        read_adapter(folder)


def _tell_words(model: "Family", settings: Export) -> None:
    """Say which new words a file had no place for."""
    from dreamlab.inversion import added

    if settings.format in ("safetensors", "ckpt", "kohya") and added(model):
        print(
            f"The file has no place for {', '.join(added(model))}: python -m dreamlab.export run={settings.run}"
            " format=embedding writes the file that goes beside it."
        )


def _place_for(settings: Export) -> Path:
    """The file or folder to write: `out`, or one named after the run (and the snapshot)."""
    from dreamlab.embedding_files import file_of
    from dreamlab.runs import run_of

    if settings.out:
        return Path(settings.out).expanduser()
    given, run = Path(settings.run).expanduser(), run_of(settings.run)
    is_snapshot = run is not None and run.path != given.resolve()
    name = f"{run.path.name}-{given.name}" if run is not None and is_snapshot else given.name
    stem = re.sub(r"\W+", "-", name).strip("-") or "model"
    if settings.format == "embedding":  # A1111 and ComfyUI know a word by its file's name
        word = str(run.read_config().get("token") or stem) if run is not None else stem
        return Path(f"outputs/exports/{stem}-{settings.dtype}-embedding") / file_of(word)
    suffixes = {"diffusers": "", "kohya": "-adapter.safetensors"}
    suffix = suffixes.get(settings.format, f".{settings.format}")
    return Path(f"outputs/exports/{stem}-{settings.dtype}{suffix}")


def _write_card(settings: Export, out: Path) -> None:
    """README.md and its picture in a folder; beside a file they bear its name."""
    from dreamlab.card import card_files
    from dreamlab.whole import written_whole

    is_folder = out.is_dir()
    picture = "grid.png" if is_folder else f"{out.stem}.png"
    for name, content in card_files(settings.run, out, settings.push, picture).items():
        file = out / name if is_folder else out.with_suffix(".md") if name == "README.md" else out.with_name(name)
        with written_whole(file) as temporary:
            temporary.write_bytes(content)


def _write_folder(model: "Family", folder: Path, settings: Export) -> None:
    if settings.dtype == "fp16":
        for part in model.parts().values():
            part.half()
    model.pipeline().save_pretrained(folder)
    for file in folder.rglob("*.json"):  # the libraries note where on this machine each part was loaded from
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_adapter(model: Any, file: Path, settings: Export) -> None:
    from dreamlab.kohya import kohya_state, kohya_words, read_adapter
    from dreamlab.runs import run_of, source_of

    adapter, weights = read_adapter(Path(source_of(settings.run)).expanduser())
    run, name = run_of(settings.run), _place_for(settings).stem
    words = kohya_words(adapter, run.read_config() if run else {}, model, name)
    state = kohya_state(adapter, weights, model.unet if model.family == "sdxl" else None)
    _write_file(state, file, settings, {**description(settings.run), **words})


def _write_word(model: "Family", file: Path, settings: Export) -> None:
    import torch

    from dreamlab import embedding_files
    from dreamlab.inversion import added

    words = added(model)
    if not words:
        raise UserError(
            f"format=embedding is for new words, and {settings.run} has none. Train with adapter=textual_inversion or"
            " adapter=pivotal."
        )
    if len(words) > 1:
        files = ", ".join(embedding_files.file_of(word) for word in words)
        raise UserError(f"{settings.run} has several new words, each in a file of its model/ folder already: {files}.")
    ((word, rows),) = words.items()
    dtype = torch.float16 if settings.dtype == "fp16" else torch.float32
    about = {**description(settings.run), "dreamlab.word": word}
    embedding_files.write(file, word, {part: weight.to(dtype) for part, weight in rows.items()}, about)


def _write_single_file(model: "Family", file: Path, settings: Export) -> None:
    _write_file(single_file_state(model), file, settings, description(settings.run))


def _write_file(state: "dict[str, Tensor]", file: Path, settings: Export, about: dict[str, str]) -> None:
    import torch
    from safetensors.torch import save_file

    state = halved(state) if settings.dtype == "fp16" else state
    state = {name: weight.contiguous() for name, weight in state.items()}
    if settings.format == "ckpt":
        torch.save({"state_dict": state, "dreamlab": about}, file)
    else:
        save_file(state, file, about)


def main() -> None:
    """The console command dreamlab-export."""
    entry.run("export", Export, export)


if __name__ == "__main__":
    main()
