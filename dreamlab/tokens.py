"""`python -m dreamlab.tokens`: identifiers that are one token and mean little to a model, or what given ones mean.

The rule is told in docs/math.md: trial.py measures, identifiers.py reads the vocabulary.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreamlab import entry
from dreamlab.commands import Tokens
from dreamlab.errors import UserError
from dreamlab.schema import Train

if TYPE_CHECKING:
    from dreamlab.trial import Judged, Trial


def tokens(settings: Tokens) -> Path:
    """Search the vocabulary, or judge the given words; returns the JSON file."""
    given, class_word = _given(settings), _checked(settings)
    from dreamlab.assemble import base_model
    from dreamlab.models import find, pick_device
    from dreamlab.runs import cache_dir, write_json
    from dreamlab.trial import Trial

    find(settings.model.source)
    device, cache = pick_device(settings.device), cache_dir(settings.cache_dir)
    model = base_model(Train(model=settings.model, device=settings.device))
    trial = Trial(model, class_word, device, cache, settings.model.guidance)
    words = trial.vocabulary.read(given)
    found = trial.judge(words) if given else trial.search(settings.letters, settings.shortlist)
    out = Path(settings.out or f"outputs/tokens/{re.sub(r'[^a-z0-9]+', '-', class_word.lower())}.json").expanduser()
    about = {"model": settings.model.source, "class_word": class_word, "weights": model.fingerprint}
    write_json(out, {**about, "identifiers": [one.as_json() for one in found]})
    shown = found if given else found[: settings.top]
    _show(shown, class_word, len(found))
    print(out)
    if settings.samples:
        print(_draw(trial, [one.reading.word for one in shown], settings.samples, out.with_suffix(".png")))
    return out


def _checked(settings: Tokens) -> str:
    """The class word; UserError for a setting that can't be."""
    for key, least in (("letters", 2), ("shortlist", 1), ("top", 1), ("samples", 0)):
        if getattr(settings, key) < least:
            raise UserError(f"{key}={getattr(settings, key)}: give a whole number, {least} or more.")
    class_word = " ".join(settings.class_word.split())
    if not class_word:
        raise UserError("class_word is empty: say what the photos show, such as class_word=dog.")
    if settings.out and not settings.out.endswith(".json"):
        raise UserError(f"out={settings.out}: give a file that ends in .json.")
    return class_word


def _given(settings: Tokens) -> list[str]:
    """The words to judge, from one word, a list of them or several with commas between."""
    given = settings.token
    words = [] if given is None else [str(word) for word in given] if isinstance(given, list) else [str(given)]
    words = [word.strip() for text in words for word in text.split(",")]
    for word in words:
        if not word or len(word.split()) > 1:
            raise UserError(f"token={given!r}: an identifier is one word without spaces, such as zwx.")
    return list(dict.fromkeys(words))


def _show(found: "Sequence[Judged]", class_word: str, tried: int) -> None:
    """The table, the best first, and a line for what to do with it."""
    from rich.console import Console
    from rich.table import Table

    title = f"Identifiers for a {class_word}: {len(found)} of {tried} tried; a word such as blue has pull 1"
    table = Table(title=title, title_justify="left", title_style="")
    table.add_column("token", no_wrap=True)
    for heading in ("pull", "rarer than"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("nearest frequent words", overflow="fold")
    table.add_column("but it", overflow="fold")
    for one in found:
        rarity = "" if one.reading.rarity is None else f"{one.reading.rarity:.1%}"
        near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in one.reading.neighbours[:3])
        table.add_row(one.reading.word, f"{one.pull:.2g}", rarity, near, one.warning)
    Console().print(table, markup=False)


def _draw(trial: "Trial", words: Sequence[str], count: int, file: Path) -> Path:
    """A sheet of what the untouched model draws with each word, below what it draws with none."""
    from dreamlab.pictures import grid

    rows = trial.pictures([None, *words], count)
    labels = ["no identifier", *words]
    sheet = grid(list(zip(labels, rows, strict=True)), [f"seed {seed}" for seed in range(count)])
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return file


def main() -> None:
    """The console command dreamlab-tokens."""
    import sys

    sys.argv[1:] = [_as_list(word) for word in sys.argv[1:]]
    entry.run("tokens", Tokens, tokens)


def _as_list(word: str) -> str:
    """`token=sks,zwx` as Hydra takes a list; it would read values to sweep over."""
    key, _, value = word.partition("=")
    return f"token=[{value}]" if key == "token" and "," in value and value[0] not in "[\"'" else word


if __name__ == "__main__":
    main()
