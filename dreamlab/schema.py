"""The settings a person can give, as dataclasses: what each is called, its type, its default and its unit.

They stand first in the defaults lists of conf/*.yaml, so Hydra refuses an unknown key or a wrong type before anything
runs. Plain values only, nothing heavy imported. What the values may be is checks.py's business.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Model:
    """Which base model, and what suits it; the top-level keys of the same names default to these."""

    family: str = "stable_diffusion"  # a key of dreamlab.models.families.FAMILIES
    source: str = "pocket"  # "pocket", a hub id, a diffusers folder, a .safetensors or .ckpt file
    config: str | None = None  # of a single file: the diffusers folder or hub id with its tokenizer and shapes
    revision: str | None = None  # hub branch, tag or commit
    variant: str | None = None  # weight file variant, such as fp16; falls back to the plain files
    vae: str | None = None  # another VAE (hub id or folder), used everywhere
    encode_with_own_vae: bool = False  # quirk of the tutorial: photos are encoded by the model's own VAE all the same
    without: list[str] = field(default_factory=list)  # parts left out: text_encoder_3, Stable Diffusion 3's T5
    clip_skip: int = 0  # 0: the text encoder's last layer; 1: the one before it, as A1111's "clip skip 2"
    padding: str = "full"  # full: prompts fill the text encoder's length, as at inference | longest: of the batch
    attention: str = "sdpa"  # sdpa (PyTorch's own) | xformers
    resolution: int = 64  # side of the square training crop, in pixels
    train: list[str] = field(default_factory=lambda: ["unet", "text_encoder"])  # what adapter.train is unless given
    lr: float = 1e-6  # of the weights themselves
    adapter_lr: float = 1e-4  # of adapters, which begin at zero
    inversion_lr: float = 2e-3  # of rows of new words
    steps: int = 800
    batch_size: int = 1
    precision: str = "fp32"
    num_prior_images: int = 50
    guidance: float = 7.5  # classifier-free guidance scale for class images and samples
    sampler: str = "ddim"  # of class images and samples; of flow matching: flow_euler
    eval_sampler: str = "dpm++"  # of the evaluation's pictures
    gradient_checkpointing: bool = False  # less memory, about a third slower
    prompts: list[str] = field(default_factory=list)  # what to sample; {token} and {class_word} are filled in
    eval_prompts: str = "paper"  # a key of dreamlab.prompt_sets.SETS, or paper: for objects or live subjects
    dino: str = "dino"  # encoders of the evaluation: a short name, a hub id or a folder
    clip: str = "clip"


@dataclass
class Adapter:
    """How the model is changed."""

    # full: the weights themselves | lora | dora | lokr: few weights beside them | textual_inversion: rows of new words
    kind: str = "full"  # | pivotal: rows of new words first, then weights
    train: list[str] = field(default_factory=lambda: ["unet", "text_encoder"])  # parts, or unet.attention and the like
    lr: float = 1e-6  # what the top-level key of this name is unless given
    # Of all kinds but full, which has null
    rank: int | None = None
    alpha: float | None = None  # what is learnt counts alpha / rank times
    dropout: float | None = None  # share of a layer's inputs (of lokr: of its outputs) that training leaves out
    targets: list[str] | None = None  # which layers: attention, feed_forward, projections, convolutions
    # Of textual_inversion and pivotal; others have null
    vectors: int | None = None  # rows that the token stands for
    initializer: str | None = None  # what they begin as; null: the class word
    keep_norm: bool | None = None  # after every update, give each row the length it began with
    # Of pivotal
    then: str | None = None  # how weights learn after the rows: full | lora | dora | lokr
    switch_step: int | None = None  # update from which they do; null: half of steps
    go_on: bool | None = None  # whether rows learn on after the switch
    embedding_lr: float | None = None  # learning rate of the rows; null: lr


@dataclass
class Data:
    """How a photo becomes a training sample."""

    crop: str = "center"  # center | random
    flip: bool = False  # mirror half of the samples; wrong for faces and lettering
    crops: int = 0  # of crop=random. 0: a new one for every sample; n: n per image, drawn once, latents cached
    buckets: bool = False  # crops of about resolution² pixels in the shape nearest to each photo's
    bucket_step: int | None = None  # pixels that the sides of buckets are multiples of; null: an eighth of resolution
    holdout: int | None = None  # photos set aside to measure with; null: 1 where there are 5 or more, else 0
    captions: bool = True  # dog.txt or dog.jpg.txt beside dog.jpg is that photo's prompt
    mask: str = "none"  # none | file: dog.mask.png beside dog.jpg, white is learnt | alpha: the photo's transparency
    unmasked_weight: float = 0.0  # weight of the loss where the mask is black
    exif: bool = True  # turn photos as their camera was held; false: quirk of the tutorial
    background: str = "white"  # behind transparent photos: white | black, the tutorial's
    resample: str = "lanczos"  # lanczos | bilinear, the tutorial's
    pairing: str = "independent"  # class image for each photo | by_index: photo i with class image i, the tutorial's


@dataclass
class Prior:
    """What the prior loss holds on to, and how class images are made by the frozen base model."""

    kind: str = "images"  # images: noise of class images | distill: the base model's prediction on them | none
    sampler: str = "ddim"
    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    seed: int = 1337  # image k uses seed + k; apart from the run's seed, so that runs share class images
    batch_size: int = 4  # images sampled at a time; no effect on which images
    jpeg_quality: int | None = None  # null: PNG; 75 is the tutorial's, whose artefacts are learnt too


@dataclass
class Objective:
    """What the loss compares, and how errors are weighed."""

    loss: str = "l2"  # l2 | huber
    huber_delta: float = 0.1  # huber: errors above it count linearly
    min_snr_gamma: float | None = None  # 5 is usual; null: every timestep weighs the same
    timesteps: str | None = None  # how often each is drawn: uniform | logit_normal; null: as the model was trained
    noise_offset: float = 0.0  # 0.05-0.1 lets the model learn very dark and very bright pictures
    zero_terminal_snr: bool = False  # rescale the noise schedule so that its last step is noise alone; v prediction


@dataclass
class Schedule:
    """How the learning rate moves: diffusers' schedule names."""

    name: str = "constant"
    warmup: int = 0  # updates
    cycles: float | None = None  # cosine: waves (null: a half) | cosine_with_restarts: restarts (null: 1)
    power: float = 1.0  # polynomial
    rules: str | None = None  # piecewise_constant: "1:100,0.1" is lr for 100 updates, then a tenth of it


@dataclass
class Trainer:
    """Where and by how many the training is done."""

    devices: int = 1  # GPUs (or CPU processes) of this machine; batch_size is for each
    strategy: str = "ddp"  # with several devices. ddp: each holds the model | fsdp: shared out, for what doesn't fit
    capture: bool = True  # on a GPU: replay updates as a CUDA graph, where they can be (captured.py)
    compile: str = "off"  # off | blocks: the repeated blocks, in seconds | full: the whole networks, in minutes
    deterministic: bool = False  # on a GPU: kernels that add in a fixed order, so that a resumed run is bit-exact


@dataclass
class Sampling:
    """How samples are drawn from the base and the tuned model."""

    sampler: str = "ddim"  # ddim | pndm | lms | dpm++ | euler | flow_euler, the only one of flow matching
    steps: int = 20
    guidance: float = 7.5
    negative_prompt: str = ""
    seed: int = 52362  # image k of a prompt uses seed + k
    images_per_prompt: int = 1
    batch_size: int = 4  # images sampled at a time
    compile: bool = False  # the denoiser, for whatever is drawn, class images and evaluations too


@dataclass
class Eval:
    """What is measured beside training, always against the untouched model with the same noise."""

    kind: str = "quick"  # none | quick | standard | paper: which file of conf/eval the numbers below come from
    prompts: str = "paper"  # a key of dreamlab.prompt_sets.SETS, or paper: for objects or live subjects
    near: int = 1  # prompts in the photos' own context
    far: int | None = 5  # prompts in other contexts; null: all of the set
    class_images: int = 4  # of the class prompt
    unrelated: int | None = 2  # prompts of other things; null: all of the set
    images_per_prompt: int = 1
    moments: int = 2  # evaluations, evenly spaced, the last one at the end
    at: list[int] = field(default_factory=list)  # further updates to evaluate at
    sampler: str | None = None  # null: what draws with the model in few steps: dpm++, of flow matching flow_euler
    steps: int = 20
    guidance: float = 7.5
    seed: int = 7  # image k of a prompt uses seed + k
    batch_size: int = 8  # images sampled at a time
    dino: str = "dino"
    clip: str = "clip"
    probes: int = 4  # times that the denoising loss is probed, evenly spaced; 0: never


@dataclass
class Logger:
    """Where metrics go besides metrics.jsonl."""

    kind: str = "wandb"  # wandb | csv | tensorboard | none
    project: str = "dreamlab"
    mode: str = "auto"  # wandb only, as all below. auto: online with an API key, else offline | online | offline
    group: str | None = None  # runs of one sweep; null: the sweep's name, none for a lone run
    job_type: str = "train"  # sorts runs inside a group; the sweep's own run has "sweep"
    tags: list[str] = field(default_factory=list)


@dataclass
class Train:
    """Everything `python -m dreamlab.train` takes."""

    instance_dir: str = "demo"  # folder of photos; "demo": crops of one CC0 photo of a cat
    concepts: str | None = None  # JSON or YAML file with several subjects, each with its folders and prompts
    class_word: str | None = None  # the subject's noun: dog, teapot, "teddy bear"
    token: str = "zwx"  # a rare identifier, one word; auto: the best that dreamlab.tokens finds
    instance_prompt: str | None = None  # null: "a photo of a {token} {class_word}"
    class_prompt: str | None = None  # null: "a photo of a {class_word}"
    lr: float = 1e-6  # learning rate
    text_encoder_lr: float | None = None  # null: lr
    text_encoder_stop: int | None = None  # update after which the text encoder no longer learns
    steps: int = 800  # optimizer updates
    batch_size: int = 1  # instance photos per micro-batch; as many class images beside them
    accumulate: int = 1  # micro-batches per update
    seed: int = 1337
    prior_weight: float = 1.0  # 0: no class images at all
    num_prior_images: int = 50
    class_dir: str | None = None  # your own class images: used first, never written to
    resolution: int = 512  # pixels
    max_grad_norm: float | None = 1.0  # over all trained parts together; null: gradients are not clipped
    ema: float | None = None  # decay of a running average of the weights, which samples and the result then use
    count: str = "updates"  # what `steps` counts: updates | micro_batches, the tutorial's
    prompts: list[str] = field(default_factory=list)
    sample_every: int | None = None  # updates; null: only before and after
    save_every: int | None = None  # updates between resume states; null: as often as five minutes have passed
    keep_states: int = 1  # resume states kept: the newest n
    snapshot_every: int | None = None  # updates between small fp16 snapshots; null: where the run is evaluated
    keep_snapshots: int | None = None  # the newest n; null: all
    resume: str = "auto"  # auto | never | a run directory or a checkpoint file
    retry: bool = False  # in a sweep: train again what failed before
    dry_run: bool = False  # say what would be trained, and train nothing
    name: str | None = None  # run directory below `out`; null: from token, class word and signature
    out: str = "outputs"
    cache_dir: str | None = None  # null: $DREAMLAB_CACHE or ~/.cache/dreamlab
    device: str = "auto"  # auto | cpu | cuda
    measured: str | None = None  # what the chosen hardware preset needs and how fast it is, in words; decides nothing
    precision: str = "fp32"  # fp32 | bf16 | fp16: dtype of the forward pass | bf16_pure: of the weights too
    model: Model = field(default_factory=Model)
    adapter: Adapter = field(default_factory=Adapter)
    data: Data = field(default_factory=Data)
    prior: Prior = field(default_factory=Prior)
    objective: Objective = field(default_factory=Objective)
    optimizer: dict[str, Any] = field(default_factory=dict)  # _target_ and its arguments
    schedule: Schedule = field(default_factory=Schedule)
    trainer: Trainer = field(default_factory=Trainer)
    sampling: Sampling = field(default_factory=Sampling)
    eval: Eval = field(default_factory=Eval)
    early_stop: str = "none"  # none | memorisation | drift: end training when the verdict's rule for it is met
    logger: Logger = field(default_factory=Logger)
