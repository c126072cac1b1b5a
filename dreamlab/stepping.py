"""How the gradients of a replayed update become a step: in the recorded graph, or right after it.

    Inside   torch's Adam and AdamW, whose fused kernels count updates and read rates on the GPU: all is recorded
    After    any other optimizer, which is called once the graph has run. bitsandbytes' see many weights as one (see
             joined.py), and gradients wait for them in the half precision that autocast has computed them in: casting
             them to float32 at once would add nothing but two bytes a weight

fp16's scaler and clipping by norm belong to it: of gradients g an optimizer sees g * min(1, most / |g|) / scale. Called
by captured.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamlab.joined import Joined, join
from dreamlab.precision import IN_HALF
from dreamlab.randomness import Use, torch_generator
from dreamlab.rounding import round_stochastically, step_rounded
from dreamlab.shares import clip, clip_factor, norm_of, total_norm


class Stepping(Protocol):
    """What follows a backward pass; `norm` is the last one's, before clipping."""

    norm: Tensor

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
    if type(optimizer) in (torch.optim.AdamW, torch.optim.Adam) and rounding_seed is None:
        return Inside(optimizer, weights, device, scaler, max_grad_norm)
    found = [module for module in trained.modules() if isinstance(module, IN_HALF)]
    can_join = type(optimizer).__module__.startswith("bitsandbytes.") and not optimizer.is_paged
    halved = [one for module in found for one in module.parameters(recurse=False)] if half and can_join else []
    return After(weights, halved, device, scaler, max_grad_norm, half, rounding_seed, can_join)


class Inside:
    """The optimizer's fused kernels as part of the graph, with rates that lie on the GPU."""

    def __init__(
        self, optimizer: Any, weights: Sequence[nn.Parameter], device: torch.device, scaler: Any,
        max_grad_norm: float | None,
    ) -> None:  # fmt: skip
        self.weights, self.device, self.scaler, self.max_grad_norm = weights, device, scaler, max_grad_norm
        self.norm = torch.zeros((), device=device)
        self._told = [float(group["lr"]) for group in optimizer.param_groups]
        self._rates = [torch.tensor(rate, device=device) for rate in self._told]
        for state in optimizer.state.values():  # after a resume, its step counts lie on the CPU
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(device)

    def begin(self, optimizer: Any) -> None:
        """A rate that a schedule has changed is told to the GPU."""
        for place, group in enumerate(optimizer.param_groups):
            if group["lr"] != self._told[place]:
                self._told[place] = group["lr"]
                self._rates[place].fill_(group["lr"])

    def clear(self, optimizer: Any) -> None:
        """Off the weights."""
        optimizer.zero_grad(set_to_none=True)

    def record(self, optimizer: Any) -> None:
        """Unscale, clip, step."""
        if self.scaler:
            self.scaler.unscale_(optimizer)
        learning = [weight for weight in self.weights if weight.grad is not None]
        self.norm = total_norm(learning, are_shares=False)
        if self.max_grad_norm is not None:
            clip(learning, self.norm, self.max_grad_norm)
        with self._capturable(optimizer):
            self.scaler.step(optimizer) if self.scaler else optimizer.step()
        if self.scaler:
            self.scaler.update()

    def finish(self, optimizer: Any, update: int) -> None:
        """All is done already."""

    def release(self) -> None:
        """Nothing is kept."""

    @contextmanager
    def _capturable(self, optimizer: Any) -> Iterator[None]:
        """The optimizer's groups as its recordable kernels want them; they are put back as they were."""
        before = [
            {key: group[key] for key in ("lr", "fused", "capturable", "foreach")} for group in optimizer.param_groups
        ]
        supports, optimizer._step_supports_amp_scaling = getattr(optimizer, "_step_supports_amp_scaling", False), True
        on_gpu = self.device.type == "cuda"
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group.update(lr=rate if on_gpu else group["lr"], fused=True, capturable=on_gpu, foreach=False)
        try:
            yield
        finally:
            for group, own in zip(optimizer.param_groups, before, strict=True):
                group.update(own)
            optimizer._step_supports_amp_scaling = supports


class After:
    """A step that follows the graph; the gradients of `halved` weights are kept in `half` until then."""

    def __init__(
        self, weights: Sequence[nn.Parameter], halved: Sequence[nn.Parameter], device: torch.device, scaler: Any,
        max_grad_norm: float | None, half: torch.dtype | None, rounding_seed: int | None, can_join: bool,
    ) -> None:  # fmt: skip
        self.weights, self.device, self.scaler, self.max_grad_norm = weights, device, scaler, max_grad_norm
        self.rounding_seed, self.can_join = rounding_seed, can_join
        self.joined: list[Joined] = []
        self.norm = torch.zeros((), device=device)
        self.kept: dict[nn.Parameter, Tensor] = {}
        # Held here, since Lightning takes gradients off the weights, and a replayed graph puts none there
        self._exact: dict[nn.Parameter, Tensor] = {}
        self._factor = torch.ones((), device=device)

        def keep(weight: Any) -> None:
            self.kept[weight], weight.grad = weight.grad.to(half), None

        self._hooks = [
            weight.register_post_accumulate_grad_hook(keep)
            for weight in halved if weight.requires_grad and weight.dtype == torch.float32
        ]  # fmt: skip

    def begin(self, optimizer: Any) -> None:
        """Rates are read as it steps."""

    def clear(self, optimizer: Any) -> None:
        """Off the weights, and out of what is held of them."""
        optimizer.zero_grad(set_to_none=True)
        self.kept.clear()
        self._exact.clear()

    def record(self, optimizer: Any) -> None:
        """The norm, and what gradients are to be multiplied by."""
        self._exact = {weight: weight.grad for weight in self.weights if weight.grad is not None}
        norm = norm_of([*self.kept.values(), *self._exact.values()])
        scale = self.scaler._scale if self.scaler else torch.ones((), device=self.device)
        self.norm = norm / scale
        self._factor = 1 / scale
        if self.max_grad_norm is not None:
            self._factor = self._factor * clip_factor(self.norm, self.max_grad_norm)
        if self.scaler:  # what its update() does, which knows gradients only by their optimizer
            torch._amp_update_scale_(
                scale, self.scaler._growth_tracker, (~norm.isfinite()).float(), self.scaler.get_growth_factor(),
                self.scaler.get_backoff_factor(), self.scaler.get_growth_interval(),
            )  # fmt: skip

    def finish(self, optimizer: Any, update: int) -> None:
        """fp16 waits for the norm here, since an update that overflows is skipped."""
        if self.scaler and not bool(self.norm.isfinite()):
            return
        rounded = None
        if self.rounding_seed is not None:
            generator = torch_generator(self.rounding_seed, Use.ROUNDING, update, self.device)
            rounded = partial(round_stochastically, generator=generator)
        if self.can_join:
            gradients = {**self.kept, **self._exact}
            self.joined = self.joined or join(optimizer, list(gradients))
            with torch.no_grad():
                for one in self.joined:
                    one.step(gradients.__getitem__, self._factor, rounded)
            return
        for weight, gradient in self._exact.items():
            weight.grad = gradient.mul_(self._factor)
        if rounded is None:
            optimizer.step()
            return
        step_rounded(optimizer, generator)
        for weight, gradient in self._exact.items():
            weight.grad = gradient  # where the graph writes the next one

    def release(self) -> None:
        """Weights stand alone again."""
        self.kept.clear()
        self._exact.clear()
        while self.joined:
            self.joined.pop().part()  # one at a time: for a moment there are two of it
        for hook in self._hooks:
            hook.remove()
