"""Files and folders that appear whole or not at all, even if the process is killed.

What is written goes to a temporary name beside its own and is then renamed. Where it replaces what can't be made again,
it is flushed to the disk first, against a power failure; gigabytes take seconds for that. Temporary names
hold the id of the process that writes, so what a killed one left behind is told from what another is writing now.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextlib.contextmanager
def written_whole(path: Path, flush: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or folder at; it takes the name `path` when the block ends without error.

    `flush` is for files: their content is on the disk before the name is. A full disk is an OSError, whatever the block
    makes of it, and names `path`.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        except Exception:
            _raise_if_full(temporary)
            raise
        if flush:
            _flush(temporary)
        if path.is_dir() and temporary.is_dir():  # a folder replaces another in two steps
            discard(path)
        os.replace(temporary, path)
        if flush:
            _flush(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        _remove(temporary)


def link_whole(source: Path, path: Path) -> None:
    """Give a file a second name, which costs no space; where the disk knows no links, a copy."""
    with written_whole(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there; a folder vanishes at once, never half."""
    with contextlib.suppress(FileNotFoundError):
        doomed = _temporary(path.with_name(f"{path.name}.old"))
        os.replace(path, doomed)
        _remove(doomed)


def sweep(folder: Path, older_than_s: float = 0) -> None:
    """Remove the temporary files and folders below `folder` whose process is no more; 0: whatever the clocks say."""
    for path in list(folder.rglob(".*.tmp")):
        found = _TEMPORARY.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):  # another process may sweep the same folder
            is_old = older_than_s == 0 or time.time() - path.stat().st_mtime >= older_than_s
            if found and is_old and not _is_another(int(found[1])):
                _remove(path)


def check_writable(folder: Path) -> None:
    """Make a folder if need be; OSError where that, or a file in it, can't be."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `written_whole` gives to what isn't finished."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _raise_if_full(written: Path) -> None:
    """OSError where nothing more can be written: PyTorch and safetensors say otherwise, or nothing, of the reason."""
    file = written / ".more.tmp" if written.is_dir() else written
    if file.parent.is_dir():
        with file.open("ab") as more:
            more.write(bytes(2**20))


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk; Windows knows no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_another(pid: int) -> bool:
    """Whether a process with this id is alive and isn't this one, which starts out with nothing half written."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
