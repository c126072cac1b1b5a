"""The words that a model reads, as its first text encoder's tokenizer splits them: CLIP's, in every family so far."""

from typing import Any

from torch import Tensor

from dreamlab.inversion import expanded
from dreamlab.models import Family

END = "</w>"  # of a token of CLIP's that ends a word


def words(model: Family) -> dict[str, int]:
    """The words that are one token, with its id: in the order in which byte pairs were merged, the frequent first."""
    vocabulary = _first(model)[1].get_vocab()
    return {token.removesuffix(END): number for token, number in vocabulary.items() if token.endswith(END)}


def pieces(model: Family, word: str) -> list[tuple[str, int]]:
    """Text and id of each token that a word of a prompt is read as, CLIP's mark of a word's end left out."""
    tokenizer = _first(model)[1]
    ids = tokenizer(word, add_special_tokens=False).input_ids
    texts = tokenizer.convert_ids_to_tokens(ids)
    return [(text.removesuffix(END), number) for text, number in zip(texts, ids, strict=True)]


def count_tokens(model: Family, prompt: str) -> int:
    """How many tokens a prompt has, its start and end included and nothing cut off."""
    tokenizer = _first(model)[1]
    return len(tokenizer(expanded(tokenizer, [prompt])[0]).input_ids)


def max_tokens(model: Family) -> int:
    """How many tokens of a prompt the first encoder reads; of what goes on, others read a part or nothing."""
    return int(_first(model)[1].model_max_length)


def token_embeddings(model: Family) -> Tensor:
    """What each id is to the first encoder before it has seen any other `(V, d)`, float32 on the CPU."""
    encoder: Any = model.parts()[_first(model)[0]]
    table: Tensor = encoder.get_input_embeddings().weight.detach().float().cpu()
    return table


def _first(model: Family) -> tuple[str, Any]:
    """The first text encoder's part, and its tokenizer."""
    return next(iter(model.tokenizers().items()))
