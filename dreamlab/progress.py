"""What the person sees beside a result: sentences, and progress bars with an ETA, all of one look.

Where stderr is a file they are lines, not bars.
"""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


def say(sentence: str) -> None:
    """Tell the person a sentence as it is, whatever signs are in it."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0, unit: str = "images") -> Iterator[Callable[..., None]]:
    """A bar over `total` things of which `done` are done already; yields `advance(count=1, note="")`."""
    columns = (
        TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance
