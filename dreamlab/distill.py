"""The prior as a teacher: what the untouched model predicts on noised class images, for the tuned one to keep to.

The plain prior loss compares with the class images' noise, which even the untouched model can't predict; this one
compares with the untouched model's own prediction on the very same noisy latents, so it is zero at the start and grows
with nothing but change (as in Learning without Forgetting, Li & Hoiem 2016, arXiv 1606.09282, for a denoiser's output).
Noise and timesteps are functions of (seed, update, sample), so all predictions can be made before training, in chunks
that runs share: a longer run adds chunks to a shorter one's. Called by feed.py.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamlab.data import Batch, TrainingData
from dreamlab.module import DreamBooth
from dreamlab.precision import autocast
from dreamlab.progress import progress
from dreamlab.runs import written_whole
from dreamlab.turns import one_at_a_time

CHUNK = 20  # updates in a file


def prior_half(batch: Batch) -> Batch:
    """The prior samples of a batch alone."""
    kept = batch.is_prior
    picked = {name: getattr(batch, name) for name in ("input_ids", "is_prior", "pixel_values", "mask", "sizes")}
    tensors = {name: value[kept] for name, value in picked.items() if value is not None}
    moments = (batch.moments[0][kept], batch.moments[1][kept]) if batch.moments else None
    samples = [sample for sample, is_prior in zip(batch.samples, kept.tolist(), strict=True) if is_prior]
    return replace(batch, samples=samples, moments=moments, **tensors)


class Teacher:
    """Predictions of the model as `module` holds it now, for the prior samples of `data`'s updates."""

    def __init__(
        self, module: DreamBooth, data: TrainingData, recipe: Mapping[str, Any], *,
        folder: Path, device: torch.device, precision: str,
    ) -> None:  # fmt: skip
        self.module, self.data, self.device, self.precision = module, data, device, precision
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / key
        self._load = lru_cache(2)(self._read)

    def prepare(self, first: int, last: int) -> None:
        """Make what is missing for the updates from `first` up to, not including, `last`."""
        missing = [chunk for chunk in range(first // CHUNK, -(-last // CHUNK)) if not self._is_whole(chunk)]
        if not missing:
            return
        with one_at_a_time(self.folder):
            missing = [chunk for chunk in missing if not self._is_whole(chunk)]  # another may have made them meanwhile
            if missing:
                self._make(missing)

    def _make(self, missing: list[int]) -> None:
        with progress("teacher", len(missing) * CHUNK, unit="updates") as advance:
            for chunk in missing:
                rows = []
                for update in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                    rows.append(torch.cat([self._predict(update, micro) for micro in range(self.data.accumulate)]))
                    advance()
                with written_whole(self._file(chunk)) as temporary:
                    save_file({"predictions": torch.stack(rows).contiguous()}, temporary)

    def __call__(self, update: int, samples: list[int]) -> Tensor:
        """The teacher's predictions `(len(samples), C, h, w)` for prior samples of an update."""
        return self._load(update // CHUNK)[update % CHUNK][samples]

    def _predict(self, update: int, micro: int) -> Tensor:
        half = prior_half(self.data.batch(update, micro)).to(self.device)
        with torch.no_grad(), autocast(self.precision, self.device):
            noised = self.module.noised(half)
            pred = self.module.predict(half, noised, self.module.text(half.input_ids, update))
        return pred.cpu()

    def _file(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.safetensors"

    def _read(self, chunk: int) -> Tensor:
        return load_file(self._file(chunk))["predictions"]

    def _is_whole(self, chunk: int) -> bool:
        try:
            return len(self._read(chunk)) == CHUNK
        except (OSError, SafetensorError, KeyError):
            return False
