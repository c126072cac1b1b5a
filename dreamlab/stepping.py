"""How the gradients of a replayed update become a step: in the recorded graph, or right after it.

    Inside   torch's Adam and AdamW, whose fused kernels count updates and read rates on the GPU: all is recorded
    EightBit bitsandbytes' AdamW of 8 bits, whose step is a kernel of ours (eight_bit.py)
    After    any other optimizer, which is called once the graph has run. bitsandbytes' see many weights as one (see
             joined.py)

Gradients of layers stay in the half precision that autocast computes them in (copies.py) until their step: casting them
to float32 at once would add nothing but two bytes a weight. fp16's scaler and clipping by norm belong to it: of
gradients g an optimizer sees g * min(1, most / |g|) / scale. Called by captured.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamlab.copies import Copies
from dreamlab.eight_bit import EightBit, can_record
from dreamlab.joined import Joined, join
from dreamlab.randomness import Use, torch_generator
from dreamlab.rounding import round_stochastically, step_rounded
from dreamlab.step_inputs import Measure, Rates

AT_ONCE = 2**26  # numbers whose gradients are float32 at a time


class Stepping(Protocol):
    """What follows a backward pass."""

    copies: Copies
    measure: Measure  # of the last one's gradients

    def begin(self, optimizer: Any) -> None:
        """Before each update, outside of the graph."""
        ...

    def clear(self, optimizer: Any) -> None:
        """Before the forward pass, inside of the graph: let go of gradients."""
        ...

    def record(self, optimizer: Any) -> None:
        """After the backward pass, inside of the graph."""
        ...

    def finish(self, optimizer: Any, update: int) -> None:
        """When the graph has run."""
        ...

    def release(self) -> None:
        """Let go of what was kept."""
        ...


def stepping(
    optimizer: Any, trained: nn.Module, device: torch.device, scaler: Any, max_grad_norm: float | None,
    half: torch.dtype | None, rounding_seed: int | None,
) -> Stepping:  # fmt: skip
    """The way that suits the optimizer; `half` is autocast's dtype, `rounding_seed` that of weights in bfloat16."""
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    measure = Measure(device, scaler, max_grad_norm)
    if type(optimizer) in (torch.optim.AdamW, torch.optim.Adam) and rounding_seed is None:
        return Inside(optimizer, weights, Copies(trained, half), device, measure)
    if rounding_seed is None and can_record(optimizer, device):
        return EightBit(optimizer, weights, Copies(trained, half), device, measure)
    can_join = type(optimizer).__module__.startswith("bitsandbytes.") and not optimizer.is_paged
    return After(weights, Copies(trained, half if can_join else None), device, measure, rounding_seed, can_join)


class Inside:
    """The optimizer's fused kernels as part of the graph, with rates that lie on the GPU."""

    def __init__(
        self, optimizer: Any, weights: Sequence[nn.Parameter], copies: Copies, device: torch.device, measure: Measure
    ) -> None:  # fmt: skip
        self.weights, self.copies, self.device, self.measure = weights, copies, device, measure
        self._rates = Rates(optimizer, device)
        for state in optimizer.state.values():  # after a resume, its step counts lie on the CPU
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(device)

    def begin(self, optimizer: Any) -> None:
        """Rates as the schedule has them."""
        self._rates.tell(optimizer)

    def clear(self, optimizer: Any) -> None:
        """Off the weights."""
        self.copies.let_go(optimizer)

    def record(self, optimizer: Any) -> None:
        """Step some weights at a time, whose gradients become float32 for it."""
        halves = self.copies.gradients
        exact = {weight: weight.grad for weight in self.weights if weight.grad is not None}
        self.measure.of([*halves.values(), *exact.values()])
        for weight in exact:
            weight.grad = None
        with self._capturable(optimizer):
            for some in _parts(halves):
                whole = {weight: torch.empty_like(weight) for weight in some}
                torch._foreach_copy_([*whole.values()], [*some.values()])
                self._step(optimizer, whole)
            self._step(optimizer, exact)

    def _step(self, optimizer: Any, gradients: dict[nn.Parameter, Tensor]) -> None:
        for weight, gradient in gradients.items():
            weight.grad = gradient
        optimizer.step()
        for weight in gradients:
            weight.grad = None

    def finish(self, optimizer: Any, update: int) -> None:
        """All is done already."""

    def release(self) -> None:
        """Let go of gradients."""
        self.copies.gradients.clear()

    @contextmanager
    def _capturable(self, optimizer: Any) -> Iterator[None]:
        """The optimizer's groups as its recordable kernels want them, which divide gradients; all is put back."""
        before = [
            {key: group[key] for key in ("lr", "fused", "capturable", "foreach")} for group in optimizer.param_groups
        ]
        on_gpu = self.device.type == "cuda"
        for group, rate in zip(optimizer.param_groups, self._rates.tensor, strict=True):
            group.update(lr=rate if on_gpu else group["lr"], fused=True, capturable=on_gpu, foreach=False)
        optimizer.grad_scale = 1 / self.measure.factor
        optimizer.found_inf = self.measure.has_overflowed if self.measure.scaler else None
        try:
            yield
        finally:
            del optimizer.grad_scale, optimizer.found_inf
            for group, own in zip(optimizer.param_groups, before, strict=True):
                group.update(own)


def _parts(gradients: dict[nn.Parameter, Tensor]) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Some of them after the other, of at most AT_ONCE numbers or of one weight."""
    part: dict[nn.Parameter, Tensor] = {}
    for weight, gradient in gradients.items():
        if part and sum(one.numel() for one in part) + weight.numel() > AT_ONCE:
            yield part
            part = {}
        part[weight] = gradient
    if part:
        yield part


class After:
    """A step that follows the graph."""

    def __init__(
        self, weights: Sequence[nn.Parameter], copies: Copies, device: torch.device, measure: Measure,
        rounding_seed: int | None, can_join: bool,
    ) -> None:  # fmt: skip
        self.weights, self.copies, self.device, self.measure = weights, copies, device, measure
        self.rounding_seed, self.can_join = rounding_seed, can_join
        self.joined: list[Joined] = []
        # Held here, since Lightning takes gradients off the weights, and a replayed graph puts none there
        self._exact: dict[nn.Parameter, Tensor] = {}

    def begin(self, optimizer: Any) -> None:
        """Rates are read as it steps."""

    def clear(self, optimizer: Any) -> None:
        """Off the weights, and out of what is held of them."""
        self.copies.let_go(optimizer)
        self._exact.clear()

    def record(self, optimizer: Any) -> None:
        """Measure."""
        self._exact = {weight: weight.grad for weight in self.weights if weight.grad is not None}
        self.measure.of([*self.copies.gradients.values(), *self._exact.values()])

    def finish(self, optimizer: Any, update: int) -> None:
        """fp16 waits for the norm here, since an update that overflows is skipped."""
        if self.measure.scaler and not bool(self.measure.norm.isfinite()):
            return
        rounded = None
        if self.rounding_seed is not None:
            generator = torch_generator(self.rounding_seed, Use.ROUNDING, update, self.device)
            rounded = partial(round_stochastically, generator=generator)
        if self.can_join:
            gradients = {**self.copies.gradients, **self._exact}
            self.joined = self.joined or join(optimizer, list(gradients))
            with torch.no_grad():
                for one in self.joined:
                    one.step(gradients.__getitem__, self.measure.factor, rounded)
            return
        for weight, gradient in self._exact.items():
            weight.grad = gradient.mul_(self.measure.factor)
        if rounded is None:
            optimizer.step()
            return
        step_rounded(optimizer, generator)
        for weight, gradient in self._exact.items():
            weight.grad = gradient  # where the graph writes the next one

    def release(self) -> None:
        """Weights stand alone again."""
        self.copies.gradients.clear()
        self._exact.clear()
        while self.joined:
            self.joined.pop().part()  # one at a time: for a moment there are two of it
