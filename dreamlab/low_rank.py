"""LoRA, DoRA and LoKr: few weights beside frozen layers, which learn in the layers' place; made by peft.

    lora   W + (alpha / rank) B A                                              Hu et al. 2021, arXiv 2106.09685
    dora   m V / |V| row by row, V = W + (alpha / rank) B A                    Liu et al. 2024, arXiv 2402.09353
    lokr   W + (alpha / rank) C x (B A), the Kronecker product of two parts    Yeh et al. 2023, arXiv 2309.14859

They begin as nothing: B (of lokr: C) is zero, and m is |W|. adapter_files.py says what is written of them. A model that
is loaded from there has them merged, so nothing else in dreamlab knows of them. Called by adapters.py and snapshots.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dreamlab.errors import UserError, did_you_mean
from dreamlab.pivotal import kind_of_weights
from dreamlab.schema import Train

KINDS = ("lora", "dora", "lokr")
# Layers by part: what their names look like. attention is the paper's; with feed_forward and projections, the U-Net's
# layers are those of kohya's trainer, and with convolutions those of its LoCon.
_CLIP = {"attention": r"\.self_attn\.(q|k|v|out)_proj$", "feed_forward": r"\.mlp\.fc[12]$"}
TARGETS: dict[str, dict[str, str]] = {
    "unet": {
        "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
        "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
        "projections": r"\.attentions\.\d+\.proj_(in|out)$",
        "convolutions": r"\.resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$|\.(down|up)samplers\.0\.conv$",
    },
    "transformer": {
        "attention": r"\.attn2?\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)$",
        "feed_forward": r"\.ff(_context)?\.net\.(0\.proj|2)$|\.single_transformer_blocks\.\d+\.proj_(mlp|out)$",
    },
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
}


@dataclass(frozen=True)
class LowRank:
    """What is put beside which layers; `train` as in adapter.train, `targets` as in TARGETS."""

    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    train: tuple[str, ...]


def low_rank_of(about: Mapping[str, Any]) -> LowRank:
    """A LowRank of what `dataclasses.asdict` made of it, and JSON of that."""
    return LowRank(**{**about, "targets": tuple(about["targets"]), "train": tuple(about["train"])})


def check_low_rank(config: Train) -> None:
    """Raise UserError where settings of low-rank adapters are missing, unknown, or beside what they can't go with."""
    chosen = config.adapter
    given = {key: getattr(chosen, key) for key in ("rank", "alpha", "dropout", "targets")}
    if kind_of_weights(chosen) not in KINDS:
        remedy = "Use adapter=pivotal_full" if chosen.kind == "pivotal" else "Choose one, or leave it out"
        for key, value in given.items():
            if value is not None:
                raise UserError(f"adapter.{key}={value} is of adapter={'|'.join(KINDS)}. {remedy}.")
        return
    for key, value in given.items():
        if value is None:
            raise UserError(f"adapter.{key} is missing, which {chosen.kind} needs. Give adapter={chosen.kind}.")
    choices = sorted({target for targets in TARGETS.values() for target in targets})
    if not chosen.targets:
        raise UserError("adapter.targets is empty: nothing would learn. Give adapter.targets=[attention].")
    for target in chosen.targets:
        if target not in choices:
            raise UserError(f"adapter.targets has {target!r}, which is unknown.{did_you_mean(target, choices)}")
    if config.precision == "bf16_pure":
        raise UserError(f"precision=bf16_pure is for whole weights; {chosen.kind}'s stay float32. Use precision=bf16.")
    if config.trainer.strategy == "fsdp" and config.trainer.devices > 1:
        raise UserError(f"trainer.strategy=fsdp can't share out {chosen.kind}, which is small. Use ddp.")


def file_name(weight: str) -> str:
    """The name in files of what peft calls `weight` in memory, where the adapter's own name is `default`."""
    bare = weight.replace(".default", "")
    return bare.removesuffix(".weight") if bare.endswith("lora_magnitude_vector.weight") else bare


def layer_of(weight: str) -> str:
    """The layer that an adapter weight of this name stands beside."""
    return re.split(r"\.(?:lora|lokr)_", weight)[0]


def layers_of(part: str, network: nn.Module, targets: Iterable[str], subsets: Iterable[str]) -> list[str]:
    """Names of the layers of a part that are among `targets` and hold weights that match one of the `subsets`."""
    patterns = [TARGETS[part][target] for target in targets if target in TARGETS[part]]
    return [
        name for name, _ in network.named_modules()
        if any(re.search(pattern, f".{name}") for pattern in patterns)
        and any(re.search(subset, f"{name}.weight") for subset in subsets)
    ]  # fmt: skip


def peft_config(adapter: LowRank, layers: Sequence[str]) -> Any:
    """What peft calls such an adapter of some layers of one part."""
    from peft import LoKrConfig, LoraConfig

    shared: dict[str, Any] = {"r": adapter.rank, "target_modules": sorted(layers)}
    lora = partial(LoraConfig, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, **shared)
    kinds: dict[str, Callable[[], Any]] = {
        "lora": lora,
        "dora": partial(lora, use_dora=True),
        # Its product is never applied to inputs that could be dropped: rows of it are, instead
        "lokr": partial(LoKrConfig, alpha=adapter.alpha, rank_dropout=adapter.dropout, **shared),
    }
    return kinds[adapter.kind]()


def insert(
    parts: Mapping[str, nn.Module], adapter: LowRank, layers: Mapping[str, Sequence[str]], seed: int = 0
) -> None:
    """Freeze every part and put float32 adapter weights beside `layers` of some, by part.

    What the weights begin with is a function of `seed` and, within a part, of which layers have some.
    """
    from peft import inject_adapter_in_model

    for network in parts.values():
        network.requires_grad_(False)
    for part, names in layers.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # peft draws from the global generator, on the CPU
            inject_adapter_in_model(peft_config(adapter, names), parts[part])
        for weight in adapter_weights(parts[part]).values():  # peft gives them the dtype of their layers
            weight.data = weight.data.float()


def adapter_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that `insert` has put into a part, by peft's names."""
    return {name: weight for name, weight in network.named_parameters() if re.search(r"\.(lora|lokr)_", name)}


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Put adapter weights, named as in files, into their places; returns the names that don't fit, or are missing."""
    own = {file_name(name): weight for name, weight in adapter_weights(network).items()}
    wrong = [name for name in own.keys() | weights.keys()
             if name not in own or name not in weights or own[name].shape != weights[name].shape]  # fmt: skip
    if not wrong:
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(weights[name])
    return sorted(wrong)


def merge(network: Any) -> None:
    """Add what adapters have learnt to the weights of their layers, and leave a network without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
    del network.peft_config
