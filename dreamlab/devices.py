"""GPUs for the members of a sweep: how many there are, and one for each process that joblib starts.

joblib's processes have no number and train one member after another, while a process keeps the GPU that it first used.
So each claims one for as long as it lives, by a lock that the operating system drops when it ends. Called by
conf/hydra/launcher/*.yaml as `${devices.count:}`, `${devices.share:}` and `${devices.own:}`.
"""

import os
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

POLL_S = 0.2
_held: list[FileLock] = []  # for as long as the process lives


def register_resolvers() -> None:
    """Make the functions below known to YAML files."""
    OmegaConf.register_new_resolver("devices.count", lambda: max(1, len(visible())), replace=True)
    OmegaConf.register_new_resolver("devices.share", lambda: min(1, len(visible())), replace=True)
    OmegaConf.register_new_resolver("devices.own", own, replace=True)


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]  # asks the driver, and does not start CUDA


@cache
def own() -> str:
    """The one GPU that is this process's, empty where there is none; waits while other sweeps hold all of them."""
    names = visible()
    folder = Path(tempfile.gettempdir()) / f"dreamlab-devices-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(exist_ok=True)
    while names:
        for name in names:
            lock = FileLock(folder / f"{name.replace('/', '-')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            return name
        time.sleep(POLL_S)
    return ""
