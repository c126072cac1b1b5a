"""Weights laid end to end, so that a bitsandbytes optimizer runs its kernels once for all of them.

It runs a page of Python for each weight of a network, of which Stable Diffusion has 880, most of them small: the GPU
waits for nearly all of a step. Its moments in 8 bits are quantised in blocks of 256 numbers, so weights that fill their
blocks can be joined without changing any number, and so can those whose moments are float32. Each weight, and each of
its moments, becomes a view into the joined tensor: whoever saves or loads them finds what was there before. Called by
stepping.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamlab.optim import make_ready

BLOCK = 256  # numbers of a weight that share a scale
LAID = ("state1", "state2", "absmax1", "absmax2")  # what is kept of each number, and of each block

Gradient = Callable[[nn.Parameter], Tensor]


class Joined:
    """Some weights of one group of `optimizer`, contiguous and of one dtype, as one."""

    def __init__(self, optimizer: Any, group_number: int, weights: Sequence[nn.Parameter]) -> None:
        self.optimizer, self.group_number, self.weights = optimizer, group_number, list(weights)
        states = [optimizer.state[weight] for weight in weights]
        self.whole = torch.cat([weight.data.flatten() for weight in weights])
        self.state = {key: value for key, value in states[0].items() if key not in LAID}
        for weight, part in zip(weights, self.whole.split([weight.numel() for weight in weights]), strict=True):
            weight.data = part.view_as(weight)
        for key in LAID:
            if key in states[0]:
                self.state[key] = torch.cat([_as_it_lies(state[key]) for state in states])
                parts = self.state[key].split([state[key].numel() for state in states])
                for state, part in zip(states, parts, strict=True):
                    state[key] = part.view_as(state[key])

    def step(self, gradient_of: Gradient, factor: Tensor, rounded: Callable[[Tensor], Tensor] | None) -> None:
        """One update by gradients times `factor`; where the weights aren't float32, `rounded` brings them back."""
        optimizer = self.optimizer
        master = nn.Parameter(self.whole.float())  # itself, if it is float32
        gradient = torch.cat([gradient_of(weight).flatten() for weight in self.weights]).float()
        master.grad = gradient.mul_(factor)
        del gradient
        optimizer.state[master] = self.state
        optimizer.update_step(optimizer.param_groups[self.group_number], master, self.group_number, 0)
        del optimizer.state[master]
        for weight in self.weights:
            optimizer.state[weight]["step"] = self.state["step"]
        master.grad = None
        if rounded is not None:
            self.whole.copy_(rounded(master.data))

    def part(self) -> None:
        """Give each weight a place of its own again."""
        for weight in self.weights:
            weight.data = weight.data.clone()
            state = self.optimizer.state[weight]
            state.update({key: state[key].clone() for key in LAID if key in state})


def join(optimizer: Any, weights: Sequence[nn.Parameter]) -> list[Joined]:
    """All of `weights`, which `optimizer` has in its groups, in as few parts as each group allows."""
    make_ready(optimizer)
    wanted, found = set(weights), []
    for group_number, group in enumerate(optimizer.param_groups):
        alike: dict[Any, list[nn.Parameter]] = {}
        for number, weight in enumerate(group["params"]):
            if weight in wanted:
                if not optimizer.state[weight]:
                    optimizer.init_state(group, weight, group_number, number)
                weight.data = weight.data.contiguous()
                moment = optimizer.state[weight]["state1"]
                fills = moment.dtype == torch.float32 or weight.numel() % BLOCK == 0
                alike.setdefault((weight.dtype, moment.dtype, None if fills else number), []).append(weight)
        found += [Joined(optimizer, group_number, some) for some in alike.values()]
    return found


def _as_it_lies(moments: Tensor) -> Tensor:
    """Moments in the order of memory, which bitsandbytes goes by, whatever strides they were made with."""
    return torch.as_strided(moments, (moments.numel(),), (1,))
