"""Textual inversion: new words, whose rows in the text encoders' tables are what learns (Gal et al. 2022, 2208.01618).

    a photo of a zwx dog   is read as   a photo of a zwx zwx_1 dog     where a word stands for two rows

The table itself stays frozen and apart, so no other word can move. Every text encoder of a model has rows of its own.
Words are named as diffusers names them, whose pipelines therefore read them, too. embedding_files.py says what is
written; a model that is loaded from there has its tables enlarged, and is then as any other. Called by learning.py and
snapshots.py.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlab.errors import UserError

if TYPE_CHECKING:
    from dreamlab.models import Family

ROWS = "rows"  # what the weight is called in its module


class Extended(nn.Module):
    """A table `weight` `(V, d)` with `rows` `(n, d)` of their own, which the ids from `first` on stand for."""

    def __init__(self, weight: nn.Parameter, first: int, rows: Tensor) -> None:
        super().__init__()
        self.weight, self.first = weight, first
        self.rows = nn.Parameter(rows.detach().float().clone().to(weight.device))
        self.lengths = self.rows.detach().norm(dim=1, keepdim=True)  # at the beginning

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings `(B, L, d)` of ids `(B, L)`."""
        place = input_ids - self.first
        is_new = (place >= 0) & (place < len(self.rows))
        known = F.embedding(input_ids.clamp(max=len(self.weight) - 1), self.weight)
        new = F.embedding(place.clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(is_new[..., None], new, known)

    def restore_lengths(self) -> None:
        """Bring every row back to the length that it began with."""
        with torch.no_grad():
            lengths = self.rows.norm(dim=1, keepdim=True)
            self.rows.mul_(self.lengths.to(lengths.device) / lengths.clamp(min=1e-12))

    def plain(self) -> nn.Embedding:
        """One table that holds both."""
        last = self.first + len(self.rows)
        weight = self.weight.new_zeros(max(len(self.weight), last), self.weight.shape[1])
        weight[: len(self.weight)] = self.weight.detach()
        weight[self.first : last] = self.rows.detach()
        return nn.Embedding.from_pretrained(weight)


def is_rows(name: str) -> bool:
    """Whether a weight of this name is an Extended's rows."""
    return name.rpartition(".")[2] == ROWS


def tables(model: "Family") -> dict[str, Extended]:
    """The enlarged tables of a model that learns words, by text encoder; empty for any other model."""
    parts: Mapping[str, Any] = model.parts()
    found = {part: parts[part].get_input_embeddings() for part in model.tokenizers()}
    return {part: table for part, table in found.items() if isinstance(table, Extended)}


def names_of(token: str, vectors: int) -> list[str]:
    """The words that a token of several rows is read as: diffusers' convention."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def add_token(model: "Family", token: str, rows: Mapping[str, Tensor]) -> None:
    """Let `token` stand for `rows` `(n, d)` of each text encoder, by part, in every prompt from now on."""
    from transformers import AddedToken

    parts: Mapping[str, Any] = model.parts()
    for part, tokenizer in model.tokenizers().items():
        names = names_of(token, len(rows[part]))
        if not set(names).isdisjoint(tokenizer.get_vocab()):
            raise UserError(f"token={token} is in this model's vocabulary already. Choose another word, such as zwx.")
        encoder, first = parts[part], len(tokenizer)
        table = encoder.get_input_embeddings()
        if table.weight.shape[1] != rows[part].shape[1]:
            raise UserError(
                f"The rows of {token} have {rows[part].shape[1]} numbers, and {part} has {table.weight.shape[1]} for"
                " each word: they were learnt for another base model."
            )
        # Only where it is a whole word: otherwise "do" would be found in "dog"
        tokenizer.add_tokens([AddedToken(name, single_word=True) for name in names])
        more = rows[part].to(table.weight.device)
        if isinstance(table, Extended):
            first, more = table.first, torch.cat([table.rows.detach(), more])
        encoder.set_input_embeddings(Extended(table.weight, first, more))


def beginning(model: "Family", initializer: str, vectors: int) -> dict[str, Tensor]:
    """What `vectors` rows of each text encoder begin as: the tokens of `initializer` in their order, by part.

    Of more tokens than rows, neighbours are averaged; of fewer, each is repeated.
    """
    parts: Mapping[str, Any] = model.parts()
    made = {}
    for part, tokenizer in model.tokenizers().items():
        ids = tokenizer(initializer, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"adapter.initializer={initializer!r} is nothing to this model's tokenizer. Give a noun.")
        table = parts[part].get_input_embeddings()
        with torch.no_grad():
            known = table(torch.tensor([ids], device=table.weight.device))[0]
        count = len(ids)
        shares = [(row * count // vectors, (row + 1) * count // vectors) for row in range(vectors)]
        made[part] = torch.stack([known[start : max(start + 1, stop)].mean(0) for start, stop in shares])
    return made


def expanded(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts in which every token of several rows is as many words: what diffusers' pipelines do first of all."""
    from diffusers.loaders import TextualInversionLoaderMixin

    found: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)
    return found


def reading(model: "Family", prompt: str) -> list[str]:
    """Hashes of the rows with which a model that learns words reads a prompt; none where it holds no such word."""
    found = []
    for part, table in tables(model).items():
        tokenizer = model.tokenizers()[part]
        places = {number - table.first for number in tokenizer(expanded(tokenizer, [prompt])).input_ids[0]}
        rows = table.rows.detach().cpu()[sorted(place for place in places if 0 <= place < len(table.rows))]
        if len(rows):
            found.append(hashlib.sha256(rows.numpy().tobytes()).hexdigest())
    return found


def merge(model: "Family") -> None:
    """Put what was learnt into the tables themselves: a model as any other."""
    parts: Mapping[str, Any] = model.parts()
    for part, table in tables(model).items():
        plain = table.plain()
        parts[part].set_input_embeddings(plain)
        parts[part].config.vocab_size = plain.num_embeddings


@contextmanager
def merged(model: "Family") -> Iterator[None]:
    """The same inside of the block: files of the whole model are written there."""
    parts: Mapping[str, Any] = model.parts()
    before = {part: (table, parts[part].config.vocab_size) for part, table in tables(model).items()}
    merge(model)
    try:
        yield
    finally:
        for part, (table, size) in before.items():
            parts[part].set_input_embeddings(table)
            parts[part].config.vocab_size = size


def added(model: "Family") -> dict[str, dict[str, Tensor]]:
    """The rows `(n, d)` of each added token, by token and text encoder, of a model whose tables hold them."""
    parts: Mapping[str, Any] = model.parts()
    found: dict[str, dict[str, Tensor]] = {}
    for part, tokenizer in model.tokenizers().items():
        places = {
            name: number for name, number in tokenizer.get_added_vocab().items() if number >= tokenizer.vocab_size
        }
        weight = parts[part].get_input_embeddings().weight.detach()
        for token in places:
            first, _, number = token.rpartition("_")
            if not (number.isdecimal() and first in places):  # zwx_1 is zwx's
                names = [token]
                while f"{token}_{len(names)}" in places:
                    names.append(f"{token}_{len(names)}")
                found.setdefault(token, {})[part] = weight[[places[name] for name in names]]
    return found
