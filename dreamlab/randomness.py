"""Randomness is a function, not a state.

Every random choice of training is computed from `(seed, update, sample)` and from what it is for, by a
counter-based generator (Philox4x64, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Nothing
is carried from one update to the next, so a resumed run, a shorter run and a run with another batch split draw the
same numbers, and two runs that differ in one knob differ in nothing else. Called by data.py and module.py.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch

DENSITIES = ("uniform", "logit_normal")  # of timesteps


class Use(IntEnum):
    """What a random number is for; each use has a stream of its own."""

    NOISE = 1
    TIMESTEP = 2
    POSTERIOR = 3
    CROP = 4
    FLIP = 5
    CHOICE = 6
    BUCKET = 7
    FIXED_CROP = 8
    OFFSET = 9
    ROUNDING = 10
    PROBE = 11
    DROPOUT = 12


def generator(seed: int, use: Use, update: int, sample: int, is_prior: bool = False) -> np.random.Generator:
    """A fresh generator for one use of one sample of one update; prior samples have streams apart."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, (int(use) << 1) | int(is_prior)], dtype=np.uint64)
    counter = np.array([0, 0, update, sample], dtype=np.uint64)  # low words count draws, high words name the sample
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(
    seed: int, use: Use, update: int, samples: Sequence[int], is_prior: Sequence[bool], shape: Sequence[int]
) -> torch.Tensor:
    """Standard normal noise `(B, *shape)`, float32 on the CPU, row b being a function of sample b alone."""
    rows = [
        generator(seed, use, update, sample, prior).standard_normal(tuple(shape), dtype=np.float32)
        for sample, prior in zip(samples, is_prior, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def timesteps(
    seed: int, update: int, samples: Sequence[int], is_prior: Sequence[bool], num_train_timesteps: int,
    density: str = "uniform",
) -> torch.Tensor:  # fmt: skip
    """Timesteps `(B,)` int64 in [0, num_train_timesteps), of one of DENSITIES.

    Logit-normal: the logit of t / num_train_timesteps is a standard normal, so that the middle comes most often
    (Esser et al. 2024, arXiv 2403.03206, eq. 19 with m = 0 and s = 1).
    """

    def drawn(stream: np.random.Generator) -> int:
        if density == "uniform":
            return int(stream.integers(num_train_timesteps))
        if density == "logit_normal":
            return min(int(num_train_timesteps / (1 + math.exp(-stream.standard_normal()))), num_train_timesteps - 1)
        raise ValueError(f"unknown density {density!r}; known: {', '.join(DENSITIES)}")

    rows = zip(samples, is_prior, strict=True)
    numbers = [drawn(generator(seed, Use.TIMESTEP, update, sample, prior)) for sample, prior in rows]
    return torch.tensor(numbers, dtype=torch.int64)


def torch_generator(seed: int, use: Use, update: int, device: torch.device) -> torch.Generator:
    """The device's own generator for one use of one update, where as many numbers are drawn as there are weights.

    What it draws is the same at every call, but differs from one kind of device to another.
    """
    made = torch.Generator(device)
    made.manual_seed(int(generator(seed, use, update, 0).integers(2**32)))
    return made


def permutation(seed: int, use: Use, number: int, size: int, is_prior: bool = False) -> list[int]:
    """The order of pass `number` over `size` things."""
    order: list[int] = generator(seed, use, number, 0, is_prior).permutation(size).tolist()
    return order


def choice(seed: int, position: int, size: int, is_prior: bool = False) -> int:
    """Which of `size` images stands at `position` of an endless sequence of freshly shuffled passes.

    Each pass shows every image once; instance and class images are shuffled independently.
    """
    passes, place = divmod(position, size)
    return permutation(seed, Use.CHOICE, passes, size, is_prior)[place]
