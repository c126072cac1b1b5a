"""Keys and tokens stay out of everything that a run writes, which is to be shown and shared."""

import dataclasses
import json
import os
import re

from dreamlab.errors import UserError
from dreamlab.schema import Train

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def without_secrets(text: str) -> str:
    """`text` with the value of every environment variable that holds a key, token or password masked."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
            text = text.replace(value, "***")
    return text


def refuse_secrets(config: Train) -> None:
    """UserError where a setting holds a key: settings are written into the run, to be shown and shared."""
    told = json.dumps(dataclasses.asdict(config), ensure_ascii=False, default=str)
    values = {name: os.environ.get(name, "") for name in SECRETS}
    known = [name for name, value in values.items() if len(value) >= 8 and value in told]
    if known or HUB_TOKEN.search(told):
        what = f"the value of {known[0]}" if known else "a token of the hub"
        raise UserError(f"A setting holds {what}, and settings are kept with the run. Leave it in the environment.")
