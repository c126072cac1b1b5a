"""A denoiser's forward passes as CUDA graphs: a sampler calls it again and again with tensors of the same shapes.

Of a batch of four, Python needs twice as long to ask for the kernels of a forward pass as a GPU for running them. The
first call of some shapes runs as it is, the second is recorded, and the others are replayed; the kernels are the same.
Where the GPU is still at the first when the second comes, as with a large batch, Python is ahead and recording would
only take time. Called by halves.py, for as long as the weights lie where they do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dreamlab.errors import first_line
from dreamlab.progress import console

Call = Callable[..., Any]


class Replayed:
    """A function of tensors on a GPU that is replayed where it can be; gradients are not its business."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._first: dict[Any, torch.cuda.Event] = {}  # when the first call is done
        self._ways: dict[Any, _Recording | None] = {}  # of all others
        self._pool: Any = None
        self._is_given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, shape = tree_flatten((args, kwargs))
        device = next((one.device for one in leaves if isinstance(one, Tensor) and one.is_cuda), None)
        if device is None or self._is_given_up or torch.is_grad_enabled():
            return self.call(*args, **kwargs)
        key = (shape, *(_told(one) for one in leaves))
        try:
            if key not in self._first:
                with _waiting_is_an_error():  # once recording has begun, it would leave PyTorch's memory in disorder
                    made = self.call(*args, **kwargs)
                self._first[key] = torch.cuda.Event()
                self._first[key].record()
                return made
            if key not in self._ways:
                self._ways[key] = self._recorded(leaves, shape, device) if self._first[key].query() else None
        except RuntimeError as error:
            self._is_given_up = True
            console.print(f"Drawing is not replayed as a CUDA graph: {first_line(error)}", markup=False)
            return self.call(*args, **kwargs)
        way = self._ways[key]
        return way.replay(leaves) if way else self.call(*args, **kwargs)

    def _recorded(self, leaves: list[Any], shape: Any, device: torch.device) -> "_Recording":
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return _Recording(self.call, leaves, shape, device, self._pool)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """RuntimeError where a tensor on the GPU is waited for."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _told(leaf: Any) -> Any:
    """What decides whether two arguments can be told to the same graph."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


class _Recording:
    """One graph, the tensors that it reads and those that it writes."""

    def __init__(self, call: Call, leaves: list[Any], shape: Any, device: torch.device, pool: Any) -> None:
        self._read = [one.to(device, copy=True) if isinstance(one, Tensor) else one for one in leaves]
        args, kwargs = tree_unflatten(self._read, shape)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may be talking to the GPU, too
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            written = call(*args, **kwargs)
        self._written, self._shape = tree_flatten(written)

    def replay(self, leaves: list[Any]) -> Any:
        """What the function makes of these arguments."""
        for place, leaf in zip(self._read, leaves, strict=True):
            if isinstance(place, Tensor):
                place.copy_(leaf, non_blocking=True)
        self._graph.replay()
        return tree_unflatten([one.clone() if isinstance(one, Tensor) else one for one in self._written], self._shape)
