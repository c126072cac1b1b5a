"""What a command is, from the command line to its function: used by all but train.py, whose sweeps need more."""

from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dreamlab import garbage
from dreamlab.config import conf_dir, register_schemas, setting_names
from dreamlab.errors import explained
from dreamlab.places import check_places
from dreamlab.quiet import quiet_libraries


def run(name: str, schema: type, act: Callable[[Any], object]) -> None:
    """Compose conf/<name>.yaml with the command line, and hand the settings, an object of `schema`, to `act`."""
    garbage.put_off()
    register_schemas()
    quiet_libraries()

    @hydra.main(config_path=conf_dir(), config_name=name, version_base="1.3")
    def command(raw: DictConfig) -> None:
        with explained():  # here too: Hydra would print a line of its own first
            settings = OmegaConf.to_object(raw)
            check_places(settings)
            act(settings)

    with explained(setting_names(schema)):
        command()
