"""Processes that start at once on an empty cache take turns, so that what they share is made once.

Whoever comes first holds a lock in the folder and makes what is missing; the others wait and then find it there. The
operating system drops the lock when its holder ends, however it ends. The caller looks for what is missing before, so
that a full cache needs no lock and may be read-only, and again inside. Called by prior.py, latents.py, distill.py and
demo.py.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dreamlab.progress import console

TELL_AFTER_S = 2.0
POLL_S = 0.05


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside for this folder, which is made if need be."""
    with contextlib.ExitStack() as held:
        # Without a lock the work may be done twice but never wrongly, since files appear whole: some file systems
        # know no locks, and where nothing can be written, what is written says so better
        with contextlib.suppress(OSError, NotImplementedError):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_acquired(FileLock(folder / ".lock"), folder))
        yield


def _acquired(lock: FileLock, folder: Path) -> contextlib.AbstractContextManager[object]:
    """The lock, held until the context that is returned ends; a long wait is told. Ctrl-C ends it."""
    try:
        return lock.acquire(timeout=TELL_AFTER_S, poll_interval=POLL_S)
    except Timeout:
        console.print(f"Another process is making what is missing in {folder}: waiting.", markup=False, soft_wrap=True)
        return lock.acquire(timeout=-1, poll_interval=POLL_S)
