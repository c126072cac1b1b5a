"""Where networks are while pictures are drawn: on the device for as long as they are needed, and back where they were.

T5, the text encoder of the large families, is 19 GB in float32. There each prompt is read once, before anything else is
on the device. Called by sample.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dreamlab.models import Family
from dreamlab.models.families import FAMILIES
from dreamlab.models.parts import text_encoders

Words = Callable[[slice], dict[str, Any]]


@contextlib.contextmanager
def resting(parts: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Networks on `device` and in eval mode; each one's place and each module's mode put back afterwards."""
    homes = {part: next(part.parameters()).device for part in parts if not _lies_on(part, device)}
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    for part in homes:
        part.to(device)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for part, home in homes.items():
            part.to(home)


def _lies_on(part: nn.Module, device: torch.device) -> bool:
    """Whether all of a network is there: going through it takes a moment that a GPU would wait."""
    there = torch.empty(0, device=device).device
    held = (one for module in part.modules() for one in (*module._parameters.values(), *module._buffers.values()))
    return all(one is None or one.device == there for one in held)


@contextlib.contextmanager
def told(
    model: Family, pipe: Any, prompts: Sequence[str], negative_prompt: str, device: torch.device
) -> Iterator[Words]:  # fmt: skip
    """All that draws on `device`; yields what `pipe` is told of some of the prompts.

    These are the prompts or, where text encoder layers are left out or each prompt is read first, what encoders make of
    them. No negative prompt is none: to some models that is another thing than an empty one.
    """
    encoders = text_encoders(model.parts())
    rest = [part for name, part in model.parts().items() if name not in encoders]
    reads_first = FAMILIES[model.family].reads_first
    with contextlib.ExitStack() as held:
        if not reads_first:
            held.enter_context(resting([*rest, *encoders.values()], device))
        if reads_first or model.options.clip_skip:  # diffusers has an option for it, which fails with transformers 5
            with resting([*encoders.values()], device):
                words = _read(model, prompts, negative_prompt, device)
        else:
            words = partial(_plain, prompts, negative_prompt)
        if reads_first:
            pipe.register_modules(**dict.fromkeys(encoders))  # none: it would work where they are
            held.enter_context(resting(rest, device))
        yield words


def _plain(prompts: Sequence[str], negative_prompt: str, batch: slice) -> dict[str, Any]:
    asked = list(prompts[batch])
    return {"prompt": asked, "negative_prompt": [negative_prompt] * len(asked) if negative_prompt else None}


def _read(model: Family, prompts: Sequence[str], negative_prompt: str, device: torch.device) -> Words:
    negative = [negative_prompt] if FAMILIES[model.family].has_negative else list(prompts[:1])  # which nobody looks at
    distinct = list(dict.fromkeys([*prompts, *negative]))
    read = [model.encode_text(model.tokenize([prompt]).to(device)) for prompt in distinct]
    # Some pipelines give latents the dtype of the text, and a sampler needs float32
    text = {name: torch.cat([one[name] for one in read]).float() for name in read[0]}
    rows = [distinct.index(prompt) for prompt in prompts]

    def words(batch: slice) -> dict[str, Any]:
        chosen = rows[batch], [distinct.index(negative[0])] * len(rows[batch])
        return model.prompt_words(*({name: value[which] for name, value in text.items()} for which in chosen))

    return words
