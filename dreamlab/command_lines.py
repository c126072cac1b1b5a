"""Commands that a page shows for copying: whatever a run is called, a shell and Hydra read one value of it.

And the command that was typed. Used by page.py, compare.py and runs.py.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamlab.evidence import Evidence

_PLAIN = re.compile(r"[\w./:+-](?:[\w./:+ -]*[\w./:+-])?", re.ASCII)


def command(name: str, **settings: str) -> str:
    """`python -m dreamlab.<name> key=value ...`, quoted where a shell or Hydra would read something else."""
    words = [f"{key}={shlex.quote(_hydra_value(value))}" for key, value in settings.items()]
    return " ".join([f"python -m dreamlab.{name}", *words])


def as_typed(words: Sequence[str]) -> str:
    """`sys.argv` as one would type it again; Python has put a file's name in place of its module's."""
    program = Path(words[0])
    is_module = program.parent.name == "dreamlab" and program.suffix == ".py"
    start = ["python", "-m", f"dreamlab.{program.stem}"] if is_module else [words[0]]
    return shlex.join([*start, *words[1:]])


def _hydra_value(text: str) -> str:
    """The text as Hydra's grammar takes it; in quotes only a quote, and backslashes before one, are escaped."""
    if _PLAIN.fullmatch(text):
        return text
    text = text.replace("${", r"\${")
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def place_of(path: Path) -> str:
    """A folder as one would type it from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def weights_at(evidence: Evidence, update: int) -> Path | None:
    """Where the weights of an update lie: the finished model, or a snapshot; None where they were not kept."""
    run = evidence.run
    if evidence.status.get("state") == "finished" and evidence.status.get("update") == update and run.model.is_dir():
        return run.path
    snapshot = run.snapshots / f"update-{update:06d}"
    return snapshot if snapshot.is_dir() else None


def commands_for(evidence: Evidence, update: int) -> dict[str, str]:
    """What draws with and exports the weights of an update, by purpose; empty where they were not kept."""
    weights = weights_at(evidence, update)
    if weights is None:
        return {}
    prompt = str(evidence.card.get("instance_prompt") or "a photo of ...")
    place = place_of(weights)
    return {"draw": command("sample", run=place, prompt=prompt), "export": export_command(place, evidence.config)}


def export_command(place: str, config: Mapping[str, Any]) -> str:
    """What exports the weights at `place`: one file, or a folder for pocket, whose shape the one-file layout lacks."""
    model = config.get("model")
    is_pocket = isinstance(model, Mapping) and model.get("source") == "pocket"
    return command("export", run=place, **({"format": "diffusers"} if is_pocket else {}))
