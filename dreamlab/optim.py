"""The optimizer's parameter groups and the learning-rate schedule.

The optimizer itself is whatever `_target_` in conf/optimizer names; the schedules are diffusers'.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

# diffusers' names for the schedules that need no further argument
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


def parameter_groups(parts: Mapping[str, nn.Module], lr: float, text_encoder_lr: float | None) -> list[dict[str, Any]]:
    """One group per trained part, named after it; text encoders take `text_encoder_lr` where it is given."""
    groups = []
    for name, part in parts.items():
        rate = text_encoder_lr if text_encoder_lr is not None and name.startswith("text_encoder") else lr
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        groups.append({"params": weights, "lr": rate, "name": name})
    return groups


def ignores_steps(schedule: str) -> bool:
    """Whether the first updates are the same however many follow, so that a longer run contains a shorter one."""
    return schedule.startswith("constant")
