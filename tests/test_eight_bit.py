"""AdamW of 8 bits in a recorded update: bitsandbytes' own step, number for number, and its state as it would be."""

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn

from dreamlab.copies import Copies
from dreamlab.eight_bit import EightBit, can_record
from dreamlab.joined import join
from dreamlab.step_inputs import Measure

SHAPES = ((64, 100), (96, 40, 3, 3), (30, 17, 3, 3), (77,), (5, 7, 3, 3), (1280, 320, 1, 1), (49408, 8))
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def weights(is_laid: bool) -> list[nn.Parameter]:
    stream = torch.Generator("cuda").manual_seed(1)
    made = [torch.randn(shape, device="cuda", generator=stream) * 0.1 for shape in SHAPES]
    return [
        nn.Parameter(one.contiguous(memory_format=torch.channels_last) if is_laid and one.ndim == 4 else one)
        for one in made
    ]


def gradient(weight: Tensor, update: int) -> Tensor:
    stream = torch.Generator("cuda").manual_seed(update)
    made = torch.randn(weight.shape, device="cuda", generator=stream) * 10.0 ** -(update % 3)
    return torch.empty_like(weight).copy_(made)


class Ours:
    """Steps by half the gradients, which is what clipping to a norm would come to."""

    def __init__(self, own: list[nn.Parameter]) -> None:
        self.weights = own
        groups = [{"params": own[:3], "lr": 1e-2}, {"params": own[3:], "lr": 3e-3}]
        self.optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=1e-2)
        self.way: EightBit

    def begin(self) -> None:
        measure = Measure(torch.device("cuda"), None, None)
        self.way = EightBit(self.optimizer, self.weights, Copies(nn.ModuleList(), None), torch.device("cuda"), measure)

    def step(self, update: int) -> None:
        for weight in self.weights:
            weight.grad = gradient(weight, update) * 0.5
        self.way.begin(self.optimizer)
        self.way.record(self.optimizer)
        self.way.clear(self.optimizer)

    def step_alone(self, update: int) -> None:
        for weight in self.weights:
            weight.grad = gradient(weight, update).contiguous() * 0.5
        self.optimizer.step()

    def moments(self, key: str) -> list[Tensor]:
        states = [self.optimizer.state[weight] for weight in self.weights]
        return [torch.as_strided(one[key], (one[key].numel(),), (1,)).float() for one in states if key in one]


def are_near(ours: Ours, theirs: Ours) -> None:
    for own, other in zip(ours.weights, theirs.weights, strict=True):
        far = (own - other).abs()
        assert far.max() < 2e-3 and far.mean() < 2e-6  # a moment here and there has the next code, half a step away
    for key in ("absmax1", "absmax2"):
        for own, other in zip(ours.moments(key), theirs.moments(key), strict=True):
            assert torch.allclose(own, other, rtol=2e-2)
    for key in ("state1", "state2"):
        for own, other in zip(ours.moments(key), theirs.moments(key), strict=True):
            assert (own - other).abs().gt(1e-5).float().mean() < 0.01


@pytest.mark.parametrize("is_laid", [pytest.param(one, marks=on_gpu) for one in (False, True)])
def test_each_step_is_bitsandbytes_own(is_laid: bool) -> None:
    ours, theirs = Ours(weights(is_laid)), Ours(weights(False))
    assert can_record(ours.optimizer, torch.device("cuda"))
    ours.begin()
    for update in range(1, 8):
        ours.step(update)
        theirs.step_alone(update)
        are_near(ours, theirs)


@pytest.mark.parametrize("is_first", [pytest.param(one, marks=on_gpu) for one in (False, True)])
def test_bitsandbytes_goes_on_where_it_ended_and_the_other_way(is_first: bool) -> None:
    ours, theirs = Ours(weights(True)), Ours(weights(False))
    for update in range(1, 9):
        theirs.step_alone(update)
        if is_first == (update <= 4):
            if update in (1, 5):
                ours.begin()
            ours.step(update)
            if update == 4:
                ours.way.release()
        else:
            ours.step_alone(update)
    are_near(ours, theirs)
    if not is_first:
        ours.way.release()
    steps = {state["step"] for state in ours.optimizer.state_dict()["state"].values()}
    assert steps == {8}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_saved_state_knows_how_many_steps_there_were_and_an_overflow_is_none() -> None:
    ours = Ours(weights(True))
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    scaler.scale(torch.zeros((), device="cuda"))
    ours.begin()
    ours.way.measure = Measure(torch.device("cuda"), scaler, None)
    ours.step(1)
    before = [weight.detach().clone() for weight in ours.weights]
    ours.weights[0].grad = torch.full_like(ours.weights[0], torch.inf)
    ours.way.record(ours.optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, ours.weights, strict=True))
    assert {state["step"] for state in ours.optimizer.state_dict()["state"].values()} == {1}
    assert float(scaler._scale) == 2.0


def test_on_a_cpu_and_with_other_optimizers_it_is_not_for_use() -> None:
    weight = [nn.Parameter(torch.zeros(4))]
    assert not can_record(bitsandbytes.optim.AdamW8bit(weight), torch.device("cpu"))
    assert not can_record(bitsandbytes.optim.PagedAdamW8bit(weight), torch.device("cuda"))
    assert not can_record(torch.optim.AdamW(weight), torch.device("cuda"))


def test_moments_that_bitsandbytes_made_with_strides_are_joined_in_the_order_of_its_memory() -> None:
    """It makes them as a weight lies, and then lays the weight otherwise: its kernels go by memory alone."""
    weight = nn.Parameter(torch.randn(64, 32, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = bitsandbytes.optim.AdamW8bit([weight])
    weight.grad = torch.randn(64, 32, 3, 3)
    optimizer.step()
    state = optimizer.state[weight]
    assert not state["state1"].is_contiguous()
    kept = torch.as_strided(state["state1"], (weight.numel(),), (1,)).clone()
    (joined,) = join(optimizer, [weight])
    assert torch.equal(joined.state["state1"], kept)
