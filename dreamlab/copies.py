"""Half-precision copies that stand in for a network's weights during an update, and keep its gradients half.

Under autocast each layer casts its weights itself, and its gradient is cast back, one small kernel at a time. The same
numbers come from copies made all at once. A copy lets go of its memory as soon as its gradient is there. Called by
captured.py; which layers compute in half precision, precision.py says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreamlab.casting import cast_all
from dreamlab.precision import IN_HALF


class Copies:
    """Copies in `half` of what learns in float32 in the layers of `trained`; none where `half` is None.

    `gradients` are those of the last backward pass, in `half`, by weight.
    """

    def __init__(self, trained: nn.Module, half: torch.dtype | None) -> None:
        self.half = half
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        beside = {one for layer in trained.modules() if isinstance(layer, BaseTunerLayer) for one in layer.modules()}
        for layer in trained.modules() if half else ():
            # An adapter's own layers are small, and some are computed with otherwise than by calling them
            if isinstance(layer, IN_HALF) and layer not in beside:
                for name, weight in layer.named_parameters(recurse=False):
                    if weight.requires_grad and weight.dtype == torch.float32:
                        self._places.setdefault(weight, []).append((layer, name))

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Layers compute with fresh copies in the block, which is to hold forward and backward pass."""
        try:
            self._stand_in()
            yield
        finally:
            for weight, places in self._places.items():
                for layer, name in places:
                    layer._parameters[name] = weight

    def let_go(self, optimizer: Any) -> None:
        """Take gradients off the weights of an optimizer, and drop those that are kept here."""
        optimizer.zero_grad(set_to_none=True)
        self.gradients.clear()

    def _stand_in(self) -> None:
        leaves = [nn.Parameter(copy) for copy in cast_all([*self._places], self.half)] if self.half else []
        for leaf, (weight, places) in zip(leaves, self._places.items(), strict=True):
            leaf.register_post_accumulate_grad_hook(partial(self._keep, weight))
            for layer, name in places:
                layer._parameters[name] = leaf

    def _keep(self, weight: nn.Parameter, leaf: Tensor) -> None:
        if leaf.grad is not None:
            self.gradients[weight], leaf.grad = leaf.grad, None
        leaf.data = leaf.data.new_empty(0)
