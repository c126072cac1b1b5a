"""Errors for people: one sentence that says what is wrong, what was given and what to do.

Every command runs inside `explained()`. A `UserError` becomes that sentence on stderr and exit code 2; Hydra's
and OmegaConf's own composition errors are translated into the same form; Ctrl-C is exit code 130. Anything else
is a bug of ours and keeps its traceback.
"""

import contextlib
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

EXTRAS = {  # what sweeps run with, and the part of the package that brings it
    "joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray", "optuna": "optuna",
}  # fmt: skip


# What is wrong with a place and not with us: full, too small a quota, read-only, not ours, or too long a name
OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG,
}  # fmt: skip


class UserError(Exception):
    """Something the person who typed the command can mend; the message is a sentence with the remedy."""


class AlreadyTold(Exception):
    """A member of a sweep failed and its sentence is on stderr; the other members go on."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: the nearest choice where one is near, and all the choices where they are few."""
    known = sorted(set(choices))
    # The right name in the wrong group, such as optimizer.lr, is nearer to lr than to any other key
    near = sorted((key for key in known if key.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]), key=len)
    near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listing = f" Choices: {', '.join(known)}." if len(known) <= 24 else ""
    return hint + listing


def first_line(error: BaseException) -> str:
    """What an error of a library's says first, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _translate(error: BaseException, keys: Iterable[str]) -> str:
    """A Hydra or OmegaConf error as one sentence."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group in ("hydra/launcher", "hydra/sweeper") and choice in EXTRAS:
            return f"{group}={choice} is not installed. Get it with pip install 'dreamlab[{EXTRAS[choice]}]'."
        return f"There is no {group or 'config'} called {choice!r}.{did_you_mean(choice, error.options or ())}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: write key=value, and quotes around a value with spaces or brackets."
    ambiguous = re.match(r"Ambiguous value for argument '(\w[\w.]*)=(.*)'", text)
    if ambiguous:  # only a sweep takes a,b
        key, value = ambiguous.groups()
        return f"{key}={value} has a comma: write {key}=[{value}] for a list, or \"{key}='{value}'\" for one text."
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct|Key '([^']+)' not in", text)
    if unknown:
        key = next(group for group in unknown.groups() if group)
        return f"There is no setting called {key!r}.{did_you_mean(key, keys)} `--help` lists them all."
    cause = error.__cause__
    override = re.search(r"Error merging override (\S+)", text)
    if override and isinstance(cause, OmegaConfBaseException):
        reason = str(cause).splitlines()[0].rstrip(".")
        return f"{override.group(1)!r} does not fit: {reason}. `--help` shows what each setting takes."
    return first_line(error)


def _of_the_disk(error: OSError) -> str:
    """What the operating system refused, as one sentence; any other error of its is raised on."""
    if error.errno not in OF_THE_DISK:
        raise error
    return (
        f"{error.filename or 'A file'} cannot be written or read ({error.strerror}). Make room, or choose another place"
        " (out=..., cache_dir=...); what was finished before is whole, and the same command goes on from it."
    )


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error came through: Hydra keeps it for the whole sweep, and they its model."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextlib.contextmanager
def explained(keys: Iterable[str] = (), in_sweep: bool = False) -> Iterator[None]:
    """Turn every foreseeable failure inside into one sentence on stderr and a non-zero exit code.

    `keys` are the setting names that a mistyped one is compared with. A member `in_sweep` doesn't end the process:
    it raises AlreadyTold, which Hydra keeps until the other members have run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own summary and exit; we print ours
    try:
        yield
    except (ConfigCompositionException, MissingConfigException, OmegaConfBaseException, HydraException) as error:
        print(f"dreamlab: {_translate(error, keys)}", file=sys.stderr)
        sys.exit(2)
    except (UserError, OSError) as error:
        print(f"dreamlab: {error if isinstance(error, UserError) else _of_the_disk(error)}", file=sys.stderr)
        if in_sweep:
            _let_go(error)
            raise AlreadyTold from None
        sys.exit(2)
    except AlreadyTold:
        sys.exit(2)
    except KeyboardInterrupt:
        print("dreamlab: interrupted.", file=sys.stderr)
        sys.exit(130)
