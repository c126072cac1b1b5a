"""Weights kept in bfloat16: updates computed in float32, and rounded to bfloat16 at random.

bfloat16 has 8 bits of precision, so an update below half a unit in the last place (0.2-0.4% of a weight) would always
be rounded away. Stochastic rounding goes to either neighbour with the probability that makes the mean exact (Zamirai et
al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192, section 4): small updates add up on average, and no float32
copy of the weights is needed. Called by precision.py.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreamlab.optim import step


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Finite float32 `values` as one of their two bfloat16 neighbours, by chance; bfloat16 numbers stay themselves.

    bfloat16 is the upper half of float32: 16 random bits are added to the lower half, which is then cut off.
    """
    noise = torch.randint(0, 1 << 16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)
    # A NaN's bits may overflow into those of a number
    return torch.where(values.isnan(), values, bits.view(torch.float32)).to(torch.bfloat16)


def step_rounded(optimizer: Optimizer, generator: torch.Generator) -> None:
    """One step of an `optimizer` over bfloat16 weights, which sees one group of them at a time in float32.

    What it keeps for itself, such as moments, is float32 therefore. Gradients are used up.
    """
    groups = optimizer.param_groups
    try:
        for group in groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            own = [weight.data for weight in weights]
            for weight in weights:
                gradient, weight.grad = weight.grad, None
                weight.data = weight.data.float()
                weight.grad = gradient.float()
            optimizer.param_groups = [group]
            step(optimizer)
            for weight, place in zip(weights, own, strict=True):
                weight.grad = None
                place.copy_(round_stochastically(weight.data, generator))
                weight.data = place  # a recorded graph reads it there
    finally:
        optimizer.param_groups = groups


def keep_moments_exact(optimizer: Optimizer) -> None:
    """Have `load_state_dict` leave moments in float32: torch gives them the dtype of the weights that it finds."""

    def cast(dtype: torch.dtype) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.data = weight.data.to(dtype)

    optimizer.register_load_state_dict_pre_hook(lambda *_: cast(torch.float32))
    optimizer.register_load_state_dict_post_hook(lambda *_: cast(torch.bfloat16))
