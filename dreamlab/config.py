"""The settings of a run: a schema, where the YAML files lie, and the one way to build what they name.

The dataclasses below are the first entry of the defaults list of conf/train.yaml, so Hydra refuses an unknown key
or a wrong type before anything runs. Everything here is plain values: nothing heavy is imported, so `--help` and
errors are quick. `build()` is the only door through which a `_target_` from a file becomes an object.
"""

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from dreamlab.errors import UserError, did_you_mean

ALLOWED_TARGETS = ("torch.optim.", "bitsandbytes.optim.", "pytorch_lightning.loggers.")
# Settings that say where and how a run happens, not what it computes: they leave its signature alone.
WITHOUT_EFFECT = ("out", "name", "cache_dir", "logger", "resume", "save_every", "device")


@dataclass
class Model:
    """Which base model, and what suits it; the top-level keys of the same names default to these."""

    family: str = "stable_diffusion"  # a key of dreamlab.models.FAMILIES
    source: str = "pocket"  # "pocket", a hub id, a diffusers folder, a .safetensors or .ckpt file
    config: str | None = None  # of a single file: the diffusers folder or hub id with its tokenizer and shapes
    revision: str | None = None  # hub branch, tag or commit
    variant: str | None = None  # weight file variant, such as fp16; falls back to the plain files
    vae: str | None = None  # another VAE (hub id or folder), used everywhere
    resolution: int = 64  # side of the square training crop, in pixels
    lr: float = 1e-6
    steps: int = 800
    batch_size: int = 1
    precision: str = "fp32"
    num_prior_images: int = 50
    guidance: float = 7.5  # classifier-free guidance scale for class images and samples
    gradient_checkpointing: bool = False  # less memory, about a third slower
    prompts: list[str] = field(default_factory=list)  # what to sample; {token} and {class_word} are filled in


@dataclass
class Adapter:
    """How the model is changed."""

    kind: str = "full"  # full: the weights themselves
    train: list[str] = field(default_factory=lambda: ["unet", "text_encoder"])  # parts that learn


@dataclass
class Data:
    """How a photo becomes a training sample."""

    crop: str = "center"  # center | random
    flip: bool = False  # mirror half of the samples; wrong for faces and lettering


@dataclass
class Prior:
    """How class images are made by the frozen base model."""

    sampler: str = "ddim"
    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    seed: int = 1337  # image k uses seed + k; apart from the run's seed, so that runs share class images
    batch_size: int = 4  # images sampled at a time; no effect on which images


@dataclass
class Objective:
    """What the loss adds to the plain mean squared error."""

    min_snr_gamma: float | None = None  # 5 is usual; null: every timestep weighs the same


@dataclass
class Schedule:
    """How the learning rate moves: diffusers' schedule names."""

    name: str = "constant"
    warmup: int = 0  # updates


@dataclass
class Sampling:
    """How samples are drawn from the base and the tuned model."""

    sampler: str = "ddim"  # ddim | pndm | lms | dpm++ | euler
    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    seed: int = 52362  # image k of a prompt uses seed + k
    images_per_prompt: int = 1
    batch_size: int = 4  # images sampled at a time


@dataclass
class Logger:
    """Where metrics go besides metrics.jsonl."""

    kind: str = "wandb"  # wandb | csv | tensorboard | none
    project: str = "dreamlab"
    mode: str = "auto"  # wandb only. auto: online with an API key, else offline | online | offline


@dataclass
class Train:
    """Everything `python -m dreamlab.train` takes."""

    instance_dir: str = "demo"  # folder of photos; "demo": crops of one CC0 photo of a cat
    class_word: str | None = None  # the subject's noun: dog, teapot, "teddy bear"
    token: str = "zwx"  # a rare identifier, one word
    instance_prompt: str | None = None  # null: "a photo of a {token} {class_word}"
    class_prompt: str | None = None  # null: "a photo of a {class_word}"
    lr: float = 1e-6  # learning rate
    text_encoder_lr: float | None = None  # null: lr
    steps: int = 800  # optimizer updates
    batch_size: int = 1  # instance photos per micro-batch; as many class images beside them
    accumulate: int = 1  # micro-batches per update
    seed: int = 1337
    prior_weight: float = 1.0  # 0: no class images at all
    num_prior_images: int = 50
    class_dir: str | None = None  # your own class images: used first, never written to
    resolution: int = 512  # pixels
    max_grad_norm: float = 1.0  # over all trained parts together
    prompts: list[str] = field(default_factory=list)
    sample_every: int | None = None  # updates; null: only before and after
    save_every: int | None = None  # updates between resume states; null: a quarter of steps
    resume: str = "auto"  # auto | never | a run directory or a checkpoint file
    name: str | None = None  # run directory below `out`; null: from token, class word and signature
    out: str = "outputs"
    cache_dir: str | None = None  # null: $DREAMLAB_CACHE or ~/.cache/dreamlab
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16 | fp16: the dtype of the forward pass; trained weights stay fp32
    model: Model = field(default_factory=Model)
    adapter: Adapter = field(default_factory=Adapter)
    data: Data = field(default_factory=Data)
    prior: Prior = field(default_factory=Prior)
    objective: Objective = field(default_factory=Objective)
    optimizer: dict[str, Any] = field(default_factory=dict)  # _target_ and its arguments
    schedule: Schedule = field(default_factory=Schedule)
    sampling: Sampling = field(default_factory=Sampling)
    logger: Logger = field(default_factory=Logger)


@dataclass
class Sample:
    """Everything `python -m dreamlab.sample` takes."""

    run: str = "???"  # run directory, diffusers folder, hub id, single file, or "pocket"
    config: str | None = None  # of a single file: where its tokenizer and shapes come from
    prompt: str = "???"  # several prompts: separate them with |
    n: int = 4  # images per prompt
    seed: int = 52362  # image k uses seed + k
    sampler: str = "ddim"  # ddim | pndm | lms | dpm++ | euler
    steps: int = 25
    guidance: float | None = None  # null: as the run's own samples; 7.5 where there is no run
    negative_prompt: str = ""
    height: int | None = None  # pixels; null: the model's own size
    width: int | None = None
    batch_size: int = 4
    precision: str = "fp32"
    device: str = "auto"
    out: str | None = None  # folder; null: samples/<prompt> in the run, or outputs/samples


@dataclass
class Export:
    """Everything `python -m dreamlab.export` takes."""

    run: str = "???"  # run directory, diffusers folder, hub id or single file
    config: str | None = None  # of a single file: where its tokenizer and shapes come from
    format: str = "safetensors"  # safetensors | ckpt | diffusers
    dtype: str = "fp16"  # fp16 | fp32
    vae: str | None = None
    out: str | None = None
    overwrite: bool = False


def register_schemas() -> None:
    """Make the schemas known to Hydra under the names that conf/*.yaml use."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="sample_schema", node=Sample)
    store.store(name="export_schema", node=Export)


def conf_dir() -> str:
    """Where the YAML files lie: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def setting_names(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a schema in dotted form, groups included."""
    for item in dataclasses.fields(schema):
        yield prefix + item.name
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from setting_names(item.type, f"{prefix}{item.name}.")


def signature(config: Train, photos_digest: str) -> str:
    """Eight hex digits that name what a run computes: its settings and its photos' content."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in WITHOUT_EFFECT}
    text = json.dumps([values, photos_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def locate(node: Mapping[str, Any]) -> Any:
    """What `_target_` names; raises UserError where it is outside the allow-list or missing."""
    name = node.get("_target_")
    if not isinstance(name, str) or not name.startswith(ALLOWED_TARGETS):
        allowed = ", ".join(prefix + "*" for prefix in ALLOWED_TARGETS)
        raise UserError(f"_target_ {name!r} may not be built from a config. Allowed: {allowed}.")
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(f"{name} needs a package that is not installed: {error}.") from error
    except AttributeError:
        choices = [key for key in dir(importlib.import_module(module_name)) if key[0].isupper()]
        near = difflib.get_close_matches(attribute, choices, n=1)
        raise UserError(f"There is no {name}." + (f" Did you mean {near[0]!r}?" if near else "")) from None


def build(node: Mapping[str, Any]) -> partial[Any]:
    """A partial of the callable that `_target_` names, its keyword arguments bound against the real signature."""
    target = locate(node)
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    parameters = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise UserError(f"{node['_target_']} takes no {key!r}.{did_you_mean(key, parameters)}")
    return partial(target, **arguments)
