"""Pictures that runs of one training share: what two of them ask for at the same update is drawn once."""

from collections.abc import Hashable, Sequence
from typing import Any

from PIL.Image import Image
from pytorch_lightning import Trainer

from dreamlab.callbacks import Draw, OnImage, Updates


class Drawn(Updates):
    """Remembers the pictures of the update that training is at, and forgets them with the next."""

    def __init__(self) -> None:
        self._images: dict[Hashable, Image] = {}

    def on_update(self, trainer: Trainer, module: Any, update: int) -> None:
        self._images.clear()

    def through(self, recipe: Hashable, draw: Draw) -> Draw:
        """`draw` that asks only for what `recipe` (all besides prompt and seed) has not drawn at this update."""

        def draws(prompts: Sequence[str], seeds: Sequence[int], keep: OnImage) -> None:
            keys = [(recipe, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
            missing = [place for place, key in enumerate(keys) if key not in self._images]
            for place in {*range(len(keys))} - {*missing}:
                keep(place, self._images[keys[place]])

            def take(number: int, image: Image) -> None:
                self._images[keys[missing[number]]] = image
                keep(missing[number], image)

            if missing:
                draw([prompts[place] for place in missing], [seeds[place] for place in missing], take)

        return draws
