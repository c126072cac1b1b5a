"""The optimizer's parameter groups, and which optimizers suit what.

The optimizer itself is whatever `_target_` in conf/optimizer names; conf/optimizer has one file for each.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dreamlab.config import build
from dreamlab.errors import UserError
from dreamlab.inversion import is_rows
from dreamlab.schema import Train

# torch's optimizers work on a whole group at once and make a temporary copy of it; smaller groups, smaller copies
MOST_NUMBERS = 32 * 2**20
# What updates each weight from that weight alone, and so can be stepped a group at a time (see rounding.py)
WEIGHT_BY_WEIGHT = (
    "torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD", "torch.optim.Adafactor", "bitsandbytes.optim.AdamW8bit",
    "bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes.optim.Lion",
)  # fmt: skip
ONE_RATE = ("prodigyopt.Prodigy",)  # finds one learning rate for all groups


def parameter_groups(
    parts: Mapping[str, nn.Module], lr: float, text_encoder_lr: float | None, embedding_lr: float | None = None
) -> list[dict[str, Any]]:
    """Groups of weights named after their part; text encoders take `text_encoder_lr` where it is given.

    Rows of new words are a group of their own, `embedding`, with a rate of their own.
    """
    groups, rows = [], []
    for name, part in parts.items():
        rate = text_encoder_lr if text_encoder_lr is not None and name.startswith("text_encoder") else lr
        learning = [(key, weight) for key, weight in part.named_parameters() if weight.requires_grad]
        rows += [weight for key, weight in learning if is_rows(key)]
        weights = [weight for key, weight in learning if not is_rows(key)]
        groups += [{"params": some, "lr": rate, "name": name} for some in _in_chunks(weights)]
    own = lr if embedding_lr is None else embedding_lr
    return [*groups, *({"params": some, "lr": own, "name": "embedding"} for some in _in_chunks(rows))]


def _in_chunks(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights in their order, cut so that no chunk of several holds more than MOST_NUMBERS numbers."""
    chunk: list[nn.Parameter] = []
    for weight in weights:
        if chunk and sum(one.numel() for one in chunk) + weight.numel() > MOST_NUMBERS:
            yield chunk
            chunk = []
        chunk.append(weight)
    if chunk:
        yield chunk


def fuse_on_cpu(optimizer: Any) -> None:
    """Let torch's Adam and AdamW pass once over weights that lie on the CPU, which takes a quarter of the time."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:  # not by its argument: that would also claim to unscale fp16's gradients
        if group["foreach"] is None and all(weight.device.type == "cpu" for weight in group["params"]):
            group["fused"] = True


def step(optimizer: Any) -> None:
    """One step, on a GPU without waiting for it: bitsandbytes' own waits after every single weight."""
    if "bitsandbytes" not in type(optimizer).__module__ or optimizer.is_paged:
        optimizer.step()
        return
    make_ready(optimizer)
    with torch.no_grad():
        for group_number, group in enumerate(optimizer.param_groups):
            for number, weight in enumerate(group["params"]):
                if weight.grad is not None:
                    if not optimizer.state[weight]:
                        optimizer.init_state(group, weight, group_number, number)
                    optimizer.update_step(group, weight, group_number, number)


def make_ready(optimizer: Any) -> None:
    """What a bitsandbytes optimizer does once, before its first step."""
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True


def check_optimizer(config: Train) -> None:
    """The optimizer, tried on one number: what its arguments may be, only it knows."""
    make, name = build(config.optimizer), config.optimizer["_target_"]
    try:
        make([nn.Parameter(torch.zeros(1))], lr=config.lr)
    except (TypeError, ValueError, AssertionError) as error:
        given = {key: value for key, value in config.optimizer.items() if key[0] != "_"}
        raise UserError(f"{name} refuses {given}: {error}. Change optimizer.<name>.") from None
    if name in ONE_RATE and config.text_encoder_lr not in (None, config.lr):
        raise UserError(f"{name} finds one learning rate for all: leave out text_encoder_lr={config.text_encoder_lr}.")
    if name in ONE_RATE and config.adapter.embedding_lr not in (None, config.lr):
        own = config.adapter.embedding_lr
        raise UserError(f"{name} finds one learning rate for all: adapter.embedding_lr={own} should be null.")
    if config.precision == "bf16_pure" and name not in WEIGHT_BY_WEIGHT:
        raise UserError(
            f"precision=bf16_pure can't round the updates of {name}, which looks at all weights at once or is untried."
            f" Use one of {', '.join(WEIGHT_BY_WEIGHT)}, or precision=bf16."
        )
