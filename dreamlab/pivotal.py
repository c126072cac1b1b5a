"""Which weights learn when, beside new words, and the settings of it: adapter=textual_inversion and adapter=pivotal.

    textual_inversion   rows of new words alone (inversion.py)
    pivotal             rows up to `switch_step`, from then on weights: of an adapter beside them, or whole ones. First
                        the place where a subject lies, then the network around it (Roich et al. 2021, 2106.05744)

What learns at an update is a function of its number, so a resumed run goes on as it would have. What doesn't has no
gradient, and optimizers pass it over. Called by checks.py, learning.py and module.py.
"""

import dataclasses
import re

from torch import nn

from dreamlab.errors import UserError, did_you_mean
from dreamlab.inversion import Extended, is_rows
from dreamlab.schema import Adapter, Train
from dreamlab.subject import Subject

KINDS = ("textual_inversion", "pivotal")
FULL = "full"
OF_BOTH, OF_PIVOTAL = ("vectors", "initializer", "keep_norm"), ("then", "switch_step", "embedding_lr", "go_on")


class Inversion:
    """Turns of rows and weights in `trained`; `switch_step` None: all that learns does so from the start."""

    def __init__(
        self, trained: nn.ModuleDict, lr: float | None, switch_step: int | None, go_on: bool, keep_norm: bool
    ) -> None:
        named = [(name, weight) for name, weight in trained.named_parameters() if weight.requires_grad]
        self._rows = [weight for name, weight in named if is_rows(name)]
        self._weights = [weight for name, weight in named if not is_rows(name)]
        self._tables = [module for module in trained.modules() if isinstance(module, Extended)] if keep_norm else []
        self.lr, self.switch_step, self.go_on = lr, switch_step, go_on

    def turn(self, update: int) -> None:
        """Let learn what has its turn at an update."""
        if self.switch_step is None:
            return
        has_switched = update >= self.switch_step
        for weight in self._rows:
            weight.requires_grad_(not has_switched or self.go_on)
        for weight in self._weights:
            weight.requires_grad_(has_switched)

    def settle(self) -> None:
        """After an update's step: rows that keep their lengths get them back."""
        for table in self._tables:
            table.restore_lengths()


def kind_of_weights(chosen: Adapter) -> str | None:
    """How other weights than rows learn: full, lora and so on; None where none does."""
    return chosen.then if chosen.kind == "pivotal" else None if chosen.kind in KINDS else chosen.kind


def check_inversion(config: Train, adapters: tuple[str, ...]) -> None:
    """Raise UserError where `normal` settings of new words are missing, or beside what they can't go with.

    `adapters` are the kinds that can follow rows.
    """
    chosen = config.adapter
    if chosen.kind not in KINDS:
        _refuse(chosen, (*OF_BOTH, *OF_PIVOTAL), "|".join(KINDS))
        return
    for key in ("vectors", "keep_norm", *(("then", "go_on") if chosen.kind == "pivotal" else ())):
        if getattr(chosen, key) is None:
            raise UserError(f"adapter.{key} is missing, which {chosen.kind} needs. Give adapter={chosen.kind}.")
    if chosen.initializer is not None and not chosen.initializer.strip():
        raise UserError("adapter.initializer is empty. Give a word to begin from, or leave it out for the class word.")
    if config.precision == "bf16_pure":
        raise UserError("precision=bf16_pure is for whole weights; rows of new words stay float32. Use precision=bf16.")
    if config.trainer.strategy == "fsdp" and config.trainer.devices > 1:
        raise UserError("trainer.strategy=fsdp can't share out rows of new words, which are small. Use ddp.")
    if chosen.kind == "textual_inversion":
        _refuse(chosen, OF_PIVOTAL, "pivotal")
        if chosen.train:
            raise UserError(
                f"adapter.train=[{','.join(chosen.train)}]: in a textual inversion no weight of the model learns. Leave"
                " it out, or use adapter=pivotal."
            )
        if config.text_encoder_lr is not None:
            raise UserError("text_encoder_lr: no weight of a text encoder learns. Leave it out: rows learn by lr.")
        return
    choices = (*adapters, FULL)
    if chosen.then not in choices:
        raise UserError(f"adapter.then={chosen.then}: unknown choice.{did_you_mean(str(chosen.then), choices)}")
    if config.steps < 2:
        raise UserError(f"steps={config.steps}: adapter=pivotal has two halves. Give 2 or more.")
    switch, stop = chosen.switch_step or 0, config.text_encoder_stop
    if switch >= config.steps:
        raise UserError(
            f"adapter.switch_step={switch} is not within steps={config.steps}: weights would never learn. Give a number"
            " below it, or use adapter=textual_inversion."
        )
    if stop is not None and stop <= switch:
        raise UserError(f"text_encoder_stop={stop} comes before adapter.switch_step={switch}. Give a later update.")


def _refuse(chosen: Adapter, keys: tuple[str, ...], kinds: str) -> None:
    for key in keys:
        if getattr(chosen, key) is not None:
            raise UserError(f"adapter.{key}={getattr(chosen, key)} is of adapter={kinds}. Choose one, or leave it out.")


def normal(config: Train) -> Train:
    """The same settings with what new words imply said."""
    if config.adapter.kind == "textual_inversion":  # class prompts hold no row, so class images can't teach one
        return dataclasses.replace(config, prior_weight=0.0)
    if config.adapter.kind == "pivotal" and config.adapter.switch_step is None:
        chosen = dataclasses.replace(config.adapter, switch_step=config.steps // 2)
        return dataclasses.replace(config, adapter=chosen)
    return config


def check_tokens(config: Train, subject: Subject) -> None:
    """Raise UserError for tokens that can't be new words, or that no prompt of their photos holds."""
    if config.adapter.kind not in KINDS:
        return
    for concept in subject.concepts:
        token = concept.token
        if not re.fullmatch("[a-z0-9-]+", token):
            raise UserError(
                f"token={token!r}: a new word is small letters, digits and hyphens, since other programs know it by"
                " its file's name. Choose another, such as zwx."
            )
        words = [set(re.split("[^A-Za-z0-9-]+", prompt)) for prompt in (photo.prompt for photo in concept.photos)]
        if not any(token in found for found in words):
            raise UserError(
                f"No prompt of {token}'s photos has the word {token}, so nothing would be learnt. Put it, in small"
                " letters, into instance_prompt or the captions; {token} stands for it."
            )
