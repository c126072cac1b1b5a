"""Updates as one CUDA graph: a GPU replays the kernels of an update without waiting for Python to ask for each.

Stable Diffusion's eager update issues thousands of small kernels, and the GPU idles more than half of the time. Here
the first updates run as they are, then one is recorded: forward and backward pass, clipping and, where the optimizer
allows it, its step. What changes from update to update, latents, noise, timesteps, prompts and rates, is copied
into fixed buffers, so that randomness stays a function of seed and update. The plain way is module.py's; this does the
same arithmetic. It is a precision plugin of Lightning's, which thereby neither steps nor clips itself.
"""

from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, nn

from dreamlab.compiling import joining_rows
from dreamlab.data import Batch
from dreamlab.loss import Losses
from dreamlab.models.parts import BLOCKS
from dreamlab.module import Draws, DreamBooth
from dreamlab.precision import autocast, forward_dtype, weight_dtype
from dreamlab.rounding import keep_moments_exact
from dreamlab.schema import Train
from dreamlab.stepping import Stepping, stepping

WARM_UP = 2  # updates before the recorded one: libraries choose kernels, the optimizer makes its state
TEXT = "text."  # begins the names of the buffers of what frozen text encoders have made of the prompts


def obstacle(config: Train) -> str | None:
    """Why the updates of these settings can't be recorded; None where they can, on a GPU."""
    reasons = {
        "trainer.devices above 1": config.trainer.devices > 1,
        "accumulate above 1": config.accumulate > 1,
        "random crops, which are encoded anew for each update": config.data.crop == "random" and not config.data.crops,
        "data.buckets, since shapes change": config.data.buckets,
        "model.padding=longest, since shapes change": config.model.padding == "longest",
        "prior=distill": config.prior.kind == "distill" and config.prior_weight > 0,
        "text_encoder_stop": config.text_encoder_stop is not None,
        "adapter.dropout, which is drawn for each update": bool(config.adapter.dropout),
        "adapter=lokr": config.adapter.kind == "lokr",
        "adapter=pivotal, since what learns changes at its switch": config.adapter.kind == "pivotal",
        "bitsandbytes' paged optimizers": "Paged" in str(config.optimizer.get("_target_")),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class Captured(Precision):
    """Trains a DreamBooth module by replaying its update; `name` is the forward pass's precision.

    On a CPU nothing is recorded, and each update runs as the recorded one would.
    """

    precision = "32-true"

    def __init__(self, name: str, device: torch.device, max_grad_norm: float | None, seed: int) -> None:
        super().__init__()
        self.name, self.device, self.max_grad_norm, self.seed = name, device, max_grad_norm, seed
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self.skipped = torch.zeros((), device=device)
        self._graph: Any = None
        self._calls = 0
        self._buffers: dict[str, Tensor] = {}
        self._batch: Batch
        self._stepping: Stepping
        self._errors = self._loss = torch.zeros(())

    def connect(self, model: Any, optimizers: list[Any], lr_schedulers: list[Any]) -> Any:
        """Lightning's hook before a state is loaded."""
        for optimizer in optimizers if weight_dtype(self.name) == torch.bfloat16 else ():
            keep_moments_exact(optimizer)
        return super().connect(model, optimizers, lr_schedulers)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **_: Any) -> Any:  # type: ignore[override]
        """Lightning's hook: the closure's training step is the whole update."""
        return closure()

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *_: Any, **__: Any) -> None:
        """Lightning's hook; the gradients have been used already."""

    def update(self, module: DreamBooth, batch: Batch) -> Tensor:
        """One whole update from a batch on the CPU; returns its loss."""
        optimizer = module.trainer.optimizers[0]
        if not self._calls:
            self._prepare(optimizer, module)
        self._fill(module, batch)
        self._stepping.begin(optimizer)
        if self._graph is not None:
            self._graph.replay()
        elif self.device.type == "cpu":
            self._run(module, optimizer)
        elif self._calls < WARM_UP:
            self._beside(lambda: self._run(module, optimizer))
        else:
            self._record(module, optimizer)
        self._stepping.finish(optimizer, module.trainer.global_step)
        self._calls += 1
        timesteps = self._buffers["timesteps"].clone()
        module.losses.append((self._errors.clone(), timesteps, self._batch.is_prior))
        module.grad_norm = self._stepping.measure.norm.clone()
        module.keep_rates(optimizer)
        return self._loss.clone()

    def teardown(self) -> None:
        """Lightning's hook when training is over: what was recorded holds gigabytes."""
        if self._calls:
            self._stepping.release()
        self._graph, self._calls = None, 0
        self._buffers.clear()

    def _prepare(self, optimizer: Any, module: DreamBooth) -> None:
        half = forward_dtype(self.name) if self.name in ("bf16", "fp16") else None
        self._stepping = stepping(
            optimizer, module.trained, self.device, self.scaler, self.max_grad_norm, half,
            self.seed if weight_dtype(self.name) == torch.bfloat16 else None,
        )  # fmt: skip

    def _fill(self, module: DreamBooth, batch: Batch) -> None:
        """Copy what is new in this update to where the graph reads it."""
        if batch.moments is None:
            raise ValueError("captured updates need cached latents")
        draws = module.draws(batch, batch.moments[0])
        found: dict[str, Tensor | None] = {"mean": batch.moments[0], "std": batch.moments[1], "mask": batch.mask}
        found |= {**draws._asdict(), "sizes": batch.sizes}
        if module.trains_text:
            found["input_ids"] = batch.input_ids
        else:
            with autocast(self.name, self.device):
                read = module.text(batch.input_ids, batch.update, self.device)
            found |= {TEXT + name: value for name, value in read.items()}
        for name, value in found.items():
            if value is not None:
                self._copy(name, value)
        if not self._calls:
            mask, sizes = self._buffers.get("mask"), self._buffers.get("sizes")
            is_prior = batch.is_prior.to(self.device)
            self._batch = replace(batch, is_prior=is_prior, moments=None, mask=mask, sizes=sizes)

    def _copy(self, name: str, value: Tensor) -> None:
        if name not in self._buffers:
            self._buffers[name] = torch.empty_like(value, device=self.device)
        is_pinned = self.device.type == "cuda" and value.device.type == "cpu"
        self._buffers[name].copy_(value.pin_memory() if is_pinned else value, non_blocking=True)

    def _beside(self, run: Any) -> None:
        """On a stream of its own, as recording demands of what goes before it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _record(self, module: DreamBooth, optimizer: Any) -> None:
        self._stepping.clear(optimizer)
        torch.cuda.empty_cache()  # the graph has a pool of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(module, optimizer)
        graph.replay()
        self._graph = graph
        uncompile(module.trained)  # the graph holds the kernels

    def _run(self, module: DreamBooth, optimizer: Any) -> None:
        """The update itself, from the buffers."""
        self._stepping.clear(optimizer)
        with self._stepping.copies.standing_in():
            losses = self._forward(module)
            (self.scaler.scale(losses.total) if self.scaler else losses.total).backward()
        self._stepping.record(optimizer)
        self.skipped += ~self._stepping.measure.norm.isfinite()
        self._errors, self._loss = losses.errors.detach(), losses.total.detach()

    def _forward(self, module: DreamBooth) -> Losses:
        buffers = self._buffers
        with autocast(self.name, self.device):
            draws = Draws(**{name: buffers.get(name) for name in Draws._fields})  # type: ignore[arg-type]
            noised = module.noised(replace(self._batch, moments=(buffers["mean"], buffers["std"])), draws)
            if module.trains_text:
                text = module.model.encode_text(buffers["input_ids"])
            else:
                text = {name.removeprefix(TEXT): value for name, value in buffers.items() if name.startswith(TEXT)}
            return module.loss(self._batch, noised, text)

    def state_dict(self) -> dict[str, Any]:
        """As precision_plugins.Scaled's, so that a run can go on either way."""
        if self.scaler is None:
            return {}
        return {**self.scaler.state_dict(), "skipped_updates": int(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.skipped.fill_(state_dict["skipped_updates"])
            self.scaler.load_state_dict({k: v for k, v in state_dict.items() if k != "skipped_updates"})

    def numbers(self) -> dict[str, Tensor]:
        """fp16's scaler as tensors, which nobody has to wait for."""
        if self.scaler is None:
            return {}
        scale: Any = self.scaler._get_scale_async()
        return {
            "train/skipped_updates": self.skipped.clone(),
            "train/loss_scale": scale.clone(),
        }


def compile_parts(parts: dict[str, nn.Module], how: str) -> None:
    """Compile networks in place, whole (`full`) or only the blocks that are there many times (`blocks`)."""
    if how == "off":
        return
    for part in parts.values():
        for module in [part] if how == "full" else part.modules():
            if how == "full" or isinstance(module, BLOCKS):
                module.compile(backend=joining_rows)


def uncompile(trained: nn.Module) -> None:
    """Back to what it was: pictures have other shapes, and would each be compiled for."""
    for module in trained.modules():
        module._compiled_call_impl = None
