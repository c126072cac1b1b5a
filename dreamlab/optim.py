"""The optimizer's parameter groups and the learning-rate schedule.

The optimizer itself is whatever `_target_` in conf/optimizer names; the schedules are diffusers'.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

# diffusers' names for the schedules that need no further argument
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


# torch's optimizers work on a whole group at once and make a temporary copy of it; smaller groups, smaller copies
MOST_NUMBERS = 128 * 2**20


def parameter_groups(parts: Mapping[str, nn.Module], lr: float, text_encoder_lr: float | None) -> list[dict[str, Any]]:
    """Groups of weights named after their part; text encoders take `text_encoder_lr` where it is given."""
    groups = []
    for name, part in parts.items():
        rate = text_encoder_lr if text_encoder_lr is not None and name.startswith("text_encoder") else lr
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        groups += [{"params": some, "lr": rate, "name": name} for some in _in_chunks(weights)]
    return groups


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


def ignores_steps(schedule: str) -> bool:
    """Whether the first updates are the same however many follow, so that a longer run contains a shorter one."""
    return schedule.startswith("constant")
