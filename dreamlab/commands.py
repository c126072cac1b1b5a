"""What the commands beside training take, as dataclasses; those of training itself are schema.py's."""

from dataclasses import dataclass, field
from typing import Any

from dreamlab.schema import Data, Eval, Model


@dataclass
class Sample:
    """Everything `python -m dreamlab.sample` takes."""

    run: str = "???"  # run directory, diffusers folder, hub id, single file, or "pocket"
    config: str | None = None  # of a single file: where its tokenizer and shapes come from
    prompt: str = "???"  # several prompts: separate them with |
    n: int = 4  # images per prompt
    seed: int = 52362  # image k uses seed + k
    sampler: str | None = None  # ddim | pndm | lms | dpm++ | euler | flow_euler; null: ddim or, of a flow, flow_euler
    steps: int = 25
    guidance: Any = None  # a scale or a list of scales; null: as the run's own samples; 7.5 where there is no run
    negative_prompt: str = ""
    height: int | None = None  # pixels; null: the model's own size
    width: int | None = None
    batch_size: int = 4
    precision: str = "fp32"
    compile: bool = False  # the denoiser: a minute of waiting, then half as long again as fast; for hundreds of images
    device: str = "auto"
    out: str | None = None  # folder; null: samples/<prompt> in the run, or outputs/samples


@dataclass
class Evaluate:
    """Everything `python -m dreamlab.evaluate` takes."""

    run: str = "???"  # run directory, diffusers folder, hub id or single file
    base: str | None = None  # what a model that is no run was trained from
    instance_dir: str | None = None
    class_word: str | None = None
    token: str = "zwx"
    resolution: int | None = None
    precision: str | None = None
    device: str = "auto"
    cache_dir: str | None = None
    out: str | None = None
    eval: Eval = field(default_factory=Eval)


@dataclass
class Export:
    """Everything `python -m dreamlab.export` takes."""

    run: str = "???"  # run directory, diffusers folder, hub id or single file
    config: str | None = None  # of a single file: where its tokenizer and shapes come from
    format: str = (
        "safetensors"  # safetensors | ckpt | diffusers | kohya: an adapter alone | embedding: a new word alone
    )
    dtype: str = "fp16"  # fp16 | fp32
    vae: str | None = None
    out: str | None = None
    overwrite: bool = False
    card: bool = False  # write a model card, too: README.md in the folder, <file>.md beside the file
    push: str | None = None  # hub repository (user/name) to upload it to, with a model card
    private: bool = True


@dataclass
class Report:
    """Everything `python -m dreamlab.report` takes; one of the first three."""

    run: str | None = None  # run directory
    runs: list[str] | None = None  # run directories to compare
    folder: str | None = None  # of run directories to compare, such as a sweep's
    out: str | None = None  # HTML file of the comparison; null: comparison.html in the folder that holds the runs


@dataclass
class Inspect:
    """Everything `python -m dreamlab.inspect` takes; what training takes, too, means the same here."""

    instance_dir: str = "demo"  # folder of photos; "demo": crops of one CC0 photo of a cat
    concepts: str | None = None  # or a file with several subjects, in place of the lines around
    class_word: str | None = None
    token: str = "zwx"
    instance_prompt: str | None = None
    class_dir: str | None = None  # your own class images, in which no photo of the subject should lie
    resolution: int = 512  # pixels, side of the crop
    model: Model = field(default_factory=Model)  # as in training: model=sd15
    data: Data = field(default_factory=Data)  # how photos are cut
    encoder: str | None = None  # looks for too few angles: pocket-dino, or any other of the evaluation; null: none
    out: str | None = None  # HTML file; null: outputs/photos-<folder>.html


@dataclass
class Tokens:
    """Everything `python -m dreamlab.tokens` takes."""

    class_word: str = "???"  # the subject's noun
    token: Any = None  # an identifier or a list of them to judge; null: search the vocabulary
    letters: int = 4  # at most so many letters
    shortlist: int = 48  # how many of the rarest are tried on the model
    top: int = 20  # rows of the table
    samples: int = 0  # pictures that the untouched model draws with each identifier of the table
    device: str = "auto"
    cache_dir: str | None = None
    out: str | None = None  # JSON file; null: outputs/tokens/<class word>.json
    model: Model = field(default_factory=Model)  # as in training: model=sd15 model.source=<folder>


@dataclass
class Draws:
    """A variant of drawing that `python -m dreamlab.bench` measures."""

    sampler: str = "ddim"
    steps: int = 50
    batch_size: int = 4
    plain: bool = False  # by diffusers' pipeline alone
    compile: bool = False
    settings: list[str] = field(default_factory=list)  # of dreamlab.train: precision=bf16, ...


@dataclass
class Bench:
    """Everything `python -m dreamlab.bench` takes."""

    model: Model = field(default_factory=Model)  # as in training: model=sd15 model.source=<folder>
    settings: list[str] = field(default_factory=list)  # of dreamlab.train, for every variant
    plain: dict[str, list[str]] = field(default_factory=dict)  # variants of the plain diffusers loop: their settings
    training: dict[str, list[str]] = field(default_factory=dict)  # variants of dreamlab.train: their settings
    sampling: dict[str, Draws] = field(default_factory=dict)
    only: list[str] | None = None  # names of the variants to measure; null: all
    warmup: int = 10  # updates that are not measured
    updates: int = 60
    repeats: int = 3  # of each drawing
    instance_dir: str | None = None  # null: pictures of noise
    device: str = "auto"
    out: str = "outputs/bench.json"
