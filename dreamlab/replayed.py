"""A denoiser's forward passes as CUDA graphs: a sampler calls it again and again with tensors of the same shapes.

Of a batch of four, Python needs twice as long to ask for the kernels of a forward pass as a GPU for running them. The
first call of some shapes runs as it is, the second is recorded, and the others are replayed; the kernels are the same.
Where the GPU is well behind at the end of the first, as with a large batch, Python is ahead and recording would only
take time. Called by halves.py, for as long as the weights lie where they do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dreamlab.errors import first_line
from dreamlab.progress import console

Call = Callable[..., Any]
AHEAD = 0.25  # of the time that Python takes for a call: with more, a GPU waits for it nowhere


class First(NamedTuple):
    """The first call of some shapes: how long Python took, when it had asked for all, and when the GPU is done."""

    took_s: float
    asked_s: float
    done: torch.cuda.Event

    def was_python_ahead(self) -> bool:
        """Whether the GPU had much left to do at its end; waits for that."""
        if self.done.query():
            return False
        self.done.synchronize()
        return perf_counter() - self.asked_s > AHEAD * self.took_s


class Replayed:
    """A function of tensors on a GPU that is replayed where it can be; gradients are not its business."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._first: dict[Any, First] = {}
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
                began_s, done = perf_counter(), torch.cuda.Event()
                with _waiting_is_an_error():  # once recording has begun, it would leave PyTorch's memory in disorder
                    made = self.call(*args, **kwargs)
                done.record()
                asked_s = perf_counter()
                self._first[key] = First(asked_s - began_s, asked_s, done)
                return made
            if key not in self._ways:
                is_ahead = self._first[key].was_python_ahead()
                self._ways[key] = None if is_ahead else self._recorded(leaves, shape, device)
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
