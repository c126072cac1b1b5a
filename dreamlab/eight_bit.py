"""bitsandbytes' AdamW of 8 bits as part of a recorded update.

Its own kernel reads each weight's rate and count of updates from Python, looks for every moment's code in a table, and
waits for gradients to become float32. eight_bit_kernels.py takes the same step of gradients as they are. Small weights
have moments of float32. The optimizer and its moments remain bitsandbytes': whoever saves or loads them finds what it
would have left. Called by stepping.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamlab.casting import cast_all
from dreamlab.copies import Copies
from dreamlab.fused import can_fuse
from dreamlab.optim import make_ready
from dreamlab.step_inputs import Measure, Rates


def can_record(optimizer: Any, device: torch.device) -> bool:
    """Whether it is that optimizer, with nothing but what its name says, on a GPU that Triton knows."""
    kind = type(optimizer)
    if (kind.__module__.split(".")[0], kind.__name__) != ("bitsandbytes", "AdamW8bit") or device.type == "cpu":
        return False
    plain = {"percentile_clipping": 100, "max_unorm": 0.0, "block_wise": True}
    told = vars(optimizer.args) if hasattr(optimizer, "args") else {}
    return can_fuse() and all(told.get(key, value) == value for key, value in plain.items())


class EightBit:
    """The step in the graph; how many there were, the GPU counts."""

    def __init__(
        self, optimizer: Any, weights: Sequence[nn.Parameter], copies: Copies, device: torch.device, measure: Measure
    ) -> None:  # fmt: skip
        make_ready(optimizer)
        for weight in weights:  # as bitsandbytes does, but for channels that lie last
            if not weight.is_contiguous(memory_format=torch.channels_last):
                weight.data = weight.data.contiguous()
        self.weights, self.copies, self.measure = weights, copies, measure
        self._optimizer, self._rates = optimizer, Rates(optimizer, device)
        columns = [(*group["betas"][:2], group["eps"], group["weight_decay"]) for group in optimizer.param_groups]
        self._constants = torch.tensor(columns, dtype=torch.float64, device=device).unbind(1)
        taken = max((int(state["step"]) for state in optimizer.state.values() if state), default=0)
        self._count = torch.tensor(taken, dtype=torch.float64, device=device)
        self._hook = optimizer.register_state_dict_pre_hook(lambda _: self._settle())

    def begin(self, optimizer: Any) -> None:
        """Rates as the schedule has them."""
        self._rates.tell(optimizer)

    def clear(self, optimizer: Any) -> None:
        """Off the weights."""
        self.copies.let_go(optimizer)

    @torch.no_grad()
    def record(self, optimizer: Any) -> None:
        """Step each weight that has a gradient."""
        from dreamlab.eight_bit_kernels import step

        exact = {weight: weight.grad for weight in self.weights if weight.grad is not None}
        gradients = {**self.copies.gradients, **exact}
        self.measure.of(list(gradients.values()))
        told = self._told()
        for number, group in enumerate(optimizer.param_groups):
            small = {}
            for place, weight in enumerate(group["params"]):
                if weight in gradients:
                    if not optimizer.state[weight]:
                        optimizer.init_state(group, weight, number, place)
                    state, (beta1, beta2) = optimizer.state[weight], group["betas"][:2]
                    if state["state1"].dtype == torch.float32:
                        small[weight] = gradients[weight]
                    else:
                        step(weight, gradients[weight], state, told[number], (beta1, beta2))
            if small:
                self._step_exact(small, group, self._rates.tensor[number])

    def _step_exact(self, gradients: dict[nn.Parameter, Tensor], group: dict[str, Any], rate: Tensor) -> None:
        """Small weights, whose moments are float32, by PyTorch's kernel for many at once."""
        for weight in gradients:
            weight.data = weight.data.contiguous()  # as bitsandbytes has its moments
        flat = {weight: gradient.contiguous().view(-1) for weight, gradient in gradients.items()}
        halves = {weight: gradient for weight, gradient in flat.items() if gradient.dtype != torch.float32}
        flat.update(zip(halves, cast_all([*halves.values()], torch.float32), strict=True))
        states = [self._optimizer.state[weight] for weight in flat]
        first, second = (
            [torch.as_strided(one[key], (one[key].numel(),), (1,)) for one in states] for key in ("state1", "state2")
        )
        torch._fused_adamw_(
            [weight.view(-1) for weight in flat], [*flat.values()], first, second, [],
            [self._count.float()] * len(flat),
            lr=rate, beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False,
            grad_scale=1 / self.measure.factor, found_inf=self.measure.has_overflowed,
        )  # fmt: skip

    def finish(self, optimizer: Any, update: int) -> None:
        """All is done already."""

    def release(self) -> None:
        """Leave the optimizer as if it had stepped itself."""
        self._settle()
        self._hook.remove()
        self.copies.gradients.clear()

    def _told(self) -> Tensor:
        """`(groups, 5)`: see eight_bit_kernels.step. In float64, since 1 - 0.999 has few digits in float32."""
        steps = 1 - self.measure.has_overflowed
        self._count += steps
        rates, (beta1, beta2, eps, decay) = self._rates.tensor.double(), self._constants
        first, second = 1 - beta1**self._count, (1 - beta2**self._count).sqrt()
        told = [rates * second / first, eps * second, 1 - rates * decay]
        told += [one.expand(len(rates)) for one in (self.measure.factor, steps)]
        return torch.stack([one.float() for one in told], 1).contiguous()

    def _settle(self) -> None:
        """Tell bitsandbytes how many steps there were."""
        taken = int(self._count)
        for state in self._optimizer.state.values():
            if state:
                state["step"] = taken
