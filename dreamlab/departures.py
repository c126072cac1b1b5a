"""Which settings of a run depart from the defaults, and in which settings runs differ.

The defaults are those of conf/train.yaml with the run's own model: a model brings its own lr, steps and resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamlab.config import WITHOUT_EFFECT, conf_dir
from dreamlab.presets import leaves
from dreamlab.prompts import class_prompt, instance_prompt
from dreamlab.schema import Model, Train

_FROM_MODEL = [f"model.{key}" for key in asdict(Model()) if key in asdict(Train())]  # top-level keys default to these


def defaults_for(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting in dotted form as it would be had nothing but the model been chosen."""
    conf = Path(conf_dir())
    top: Any = OmegaConf.load(conf / "train.yaml")
    chosen = {group: choice for entry in top.pop("defaults") if not isinstance(entry, str)
              for group, choice in entry.items() if choice and (conf / group / f"{choice}.yaml").is_file()}  # fmt: skip
    top.pop("hydra")
    groups = {group: OmegaConf.load(conf / group / f"{choice}.yaml") for group, choice in chosen.items()}
    own = {group: config[group] for group in ("model", "optimizer") if group in config}  # what other keys look up
    merged = OmegaConf.merge(asdict(Train()), groups, top, own)
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException:
        return {}
    # Merging would keep arguments of another optimizer; and how the model's own group departs is told, too
    plain |= {group: OmegaConf.to_container(groups[group]) for group in ("model", "optimizer") if group in groups}
    token, class_word = (str(config.get(key) or "") for key in ("token", "class_word"))
    plain["instance_prompt"], plain["class_prompt"] = instance_prompt(token, class_word), class_prompt(class_word)
    return dict(leaves({**plain, "model": {**asdict(Model()), **plain["model"]}}))


def has_effect(key: str) -> bool:
    """Whether a setting says what a run computes, and not only where it lies."""
    return key.split(".")[0] not in WITHOUT_EFFECT and key not in _FROM_MODEL and key.split(".")[-1] != "_lr_"


def departures(config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Setting, value and default, of those that have an effect and depart from it."""
    usual = defaults_for(config)
    return [
        (key, value, usual.get(key)) for key, value in leaves(config) if has_effect(key) and value != usual.get(key)
    ]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which the runs that have any differ from each other."""
    known = [dict(leaves(config)) for config in configs if config]
    keys = dict.fromkeys(key for settings in known for key in settings if has_effect(key))
    return [key for key in keys if len({repr(settings.get(key)) for settings in known}) > 1]
