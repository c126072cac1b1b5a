"""VAE posterior moments on disk, shared by every run that encodes the same pixels with the same VAE.

The name of an entry is the hash of all that made it: the VAE's weights, the precision, the picture's content and the
crop. A changed photo has another name, so nothing stale can be read. Where nothing can be kept, a run
goes on. Called by feed.py.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamlab.data import Moments
from dreamlab.photos import Loading, Region
from dreamlab.progress import say
from dreamlab.runs import written_whole
from dreamlab.turns import one_at_a_time


class LatentCache:
    """Moments below `folder`, made by `encode` (pixels `(1, 3, H, W)` -> mean and std `(1, C, h, w)`) where missing."""

    def __init__(
        self, folder: Path, recipe: Mapping[str, Any], loading: Loading, encode: Callable[[Tensor], Moments]
    ) -> None:
        self.folder, self.encode = folder, encode
        self.recipe = {**recipe, **asdict(loading)}
        self._contents: dict[Path, str] = {}
        self._is_told = False

    def moments(self, path: Path, region: Region, pixels: Tensor) -> Moments:
        """Mean and standard deviation `(1, C, h, w)` float32 of one crop; an unreadable file is made again."""
        if path not in self._contents:
            self._contents[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        text = json.dumps([self.recipe, self._contents[path], asdict(region)], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        file = self.folder / key[:2] / f"{key}.safetensors"
        kept = _kept(file)
        if kept:
            return kept
        # Not for the whole folder: processes that encode the same go along it together, others don't meet
        with one_at_a_time(file.parent):
            return _kept(file) or self._made(file, pixels)

    def _made(self, file: Path, pixels: Tensor) -> Moments:
        mean, std = (moment.cpu().contiguous() for moment in self.encode(pixels))
        try:
            with written_whole(file) as temporary:
                save_file({"mean": mean, "std": std}, temporary)
        except OSError as error:
            if not self._is_told:
                told = f"{self.folder} cannot be written ({error.strerror}): every run will encode its pictures anew."
                say(told)
            self._is_told = True
        return mean, std


def _kept(file: Path) -> Moments | None:
    """What an entry holds; None where it isn't there or can't be read."""
    with contextlib.suppress(SafetensorError, KeyError, OSError):
        if file.is_file():
            kept = load_file(file)
            return kept["mean"], kept["std"]
    return None
