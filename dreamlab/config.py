"""Where the YAML files lie, what a run's settings are called as a whole, and the one way to build what they name.

The settings themselves are the dataclasses of schema.py. Nothing heavy is imported, so `--help` and errors are quick.
`build()` is the only door through which a `_target_` from a file becomes an object.
"""

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from dreamlab.commands import Bench, Evaluate, Export, Inspect, Report, Sample, Tokens
from dreamlab.devices import register_resolvers
from dreamlab.errors import UserError, did_you_mean
from dreamlab.schema import Train

ALLOWED_TARGETS = ("torch.optim.", "bitsandbytes.optim.", "prodigyopt.", "pytorch_lightning.loggers.")
EXTRAS = {"prodigyopt": "prodigy"}  # packages of ALLOWED_TARGETS that come with an extra of dreamlab
# Settings that say where and how a run happens, not what it computes: they leave its signature alone.
WITHOUT_EFFECT = (
    "out", "name", "cache_dir", "logger", "resume", "save_every", "keep_states", "snapshot_every", "keep_snapshots",
    "device", "retry", "dry_run", "measured",
)  # fmt: skip


def register_schemas() -> None:
    """Make the schemas known to Hydra under the names that conf/*.yaml use, and the resolvers of its launchers."""
    register_resolvers()
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="sample_schema", node=Sample)
    store.store(name="export_schema", node=Export)
    store.store(name="report_schema", node=Report)
    store.store(name="evaluate_schema", node=Evaluate)
    store.store(name="bench_schema", node=Bench)
    store.store(name="inspect_schema", node=Inspect)
    store.store(name="tokens_schema", node=Tokens)


def conf_dir() -> str:
    """Where the YAML files lie: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


def setting_names(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a schema in dotted form, groups included."""
    for item in dataclasses.fields(schema):
        yield prefix + item.name
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from setting_names(item.type, f"{prefix}{item.name}.")


def signature(config: Train, photos_digest: str) -> str:
    """Eight hex digits that name what a run computes: its settings and its photos' content."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in WITHOUT_EFFECT}
    text = json.dumps([values, photos_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def locate(node: Mapping[str, Any]) -> Any:
    """What `_target_` names; raises UserError where it is outside the allow-list or missing."""
    name = node.get("_target_")
    if not isinstance(name, str) or not name.startswith(ALLOWED_TARGETS):
        allowed = ", ".join(prefix + "*" for prefix in ALLOWED_TARGETS)
        raise UserError(f"_target_ {name!r} may not be built from a config. Allowed: {allowed}.")
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        extra = EXTRAS.get(name.split(".")[0])
        remedy = f" Get it: pip install 'dreamlab[{extra}]'." if extra else ""
        raise UserError(f"{name} needs a package that is not installed: {error}.{remedy}") from error
    except AttributeError:
        choices = [key for key in dir(importlib.import_module(module_name)) if key[0].isupper()]
        near = difflib.get_close_matches(attribute, choices, n=1)
        raise UserError(f"There is no {name}." + (f" Did you mean {near[0]!r}?" if near else "")) from None


def build(node: Mapping[str, Any]) -> partial[Any]:
    """A partial of the class that `_target_` names, its keyword arguments bound against the real signature."""
    target = locate(node)
    if not isinstance(target, type):  # modules of the allow-list import others, and name their functions
        raise UserError(f"{node['_target_']} is no class that a config may build. Choose another.")
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    parameters = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise UserError(f"{node['_target_']} takes no {key!r}.{did_you_mean(key, parameters)}")
    return partial(target, **arguments)
