"""One process per run directory: two that write the same run would ruin it.

The claim is a lock that the operating system holds for the process and drops when the process ends, however it ends.
A run that was killed is free at once, whoever has its process id by now.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dreamlab.errors import UserError
from dreamlab.progress import console
from dreamlab.runs import RunDirectory
from dreamlab.whole import is_temporary, sweep


@contextlib.contextmanager
def claimed(path: Path, waits: bool = False) -> Iterator[RunDirectory]:
    """The run directory at `path`, held for this process; UserError where another holds it or it holds no run.

    With `waits`, until the other process is done with it.
    """
    run = RunDirectory(path)
    _refuse_foreign(run)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = run.status().get("pid", "another one")
        if not waits:
            raise UserError(f"{path} is being trained by process {pid}. Wait for it, or choose name=...") from None
        console.print(f"{path} is being trained by process {pid}: waiting for it.", markup=False)
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        sweep(path)
        yield run
    finally:
        if list(path.iterdir()) == [run.lock]:  # nothing came of it
            run.lock.unlink()
        lock.release()
        with contextlib.suppress(OSError):
            path.rmdir()


def _refuse_foreign(run: RunDirectory) -> None:
    others = [file for file in run.path.glob("*") if file != run.lock and not is_temporary(file)]
    if others and not run.status():
        raise UserError(f"{run.path} exists and is no run of dreamlab. Choose another name=... or out=...")
