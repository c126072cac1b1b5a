"""Uploading an export to the hub, in one commit: all of it arrives, or none.

The login is huggingface_hub's business: no token passes through here.
"""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_session, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from dreamlab.errors import UserError
from dreamlab.secrets import without_secrets

WAIT_S = 60.0  # for the hub's next sign of life, not for the whole upload


def check_push(repo: str) -> None:
    """UserError where an upload to `repo` could not even begin."""
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("it is written user/name")
    except HFValidationError as error:
        raise UserError(
            f"push={repo}: no name of a hub repository: {_first_line(error)}. Give push=user/name."
        ) from None
    if get_token() is None:
        raise UserError(f"push={repo}: there is no login to the hub. Run `hf auth login`, or set HF_TOKEN.")


def push(out: Path, repo: str, private: bool, beside: Mapping[str, bytes]) -> str:
    """Upload the file or folder `out`, and `beside`: content by name; returns the repository's address.

    `private` holds for a repository that is new. UserError where the hub refuses or doesn't answer; `out` stays.
    """
    paths = sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else []
    files: dict[str, Path | bytes] = {path.relative_to(out).as_posix(): path for path in paths} or {out.name: out}
    files |= beside
    try:
        get_session().timeout = WAIT_S
        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, commit_message=f"Upload {out.name} with dreamlab")
    except Exception as error:  # the hub's library, the network's and the uploader's each raise their own
        reason = without_secrets(_first_line(error))
        raise UserError(
            f"The hub did not take {repo} ({reason}). The export is whole, at {out}: repeat the command with"
            " overwrite=true to try again."
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
