"""`python -m dreamlab.inspect`: the dataset doctor, doctor.py, as a command; and as warnings at the start of training.

Prints what is wrong with the photos and what to do, and writes a page of their crops (inspection_page.py). It is
imported by its full name alone, so the standard library's inspect stays what it is.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from dreamlab import entry
from dreamlab.commands import Inspect
from dreamlab.errors import UserError
from dreamlab.schema import Train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreamlab.doctor import Case, Diagnosis, Judge
    from dreamlab.subject import Subject

# How alike photos may be to an encoder on average. pocket-dino's lies between the paper's photos (0.44-0.77) and five
# crops of one of them (0.75-0.96)
LIMITS = {"pocket-dino": 0.8}
WORDS = {"good": "green", "usable": "yellow", "bad": "red"}  # verdict -> colour
DEMO = "demo"


def inspect(settings: Inspect) -> "list[Diagnosis]":
    """Look at the photos that `settings` name, tell, and write the page; UserError where there are none."""
    from dreamlab.doctor import diagnose
    from dreamlab.inspection_page import write_inspection
    from dreamlab.subject import read_subject

    if settings.resolution < 8:
        raise UserError(f"resolution={settings.resolution}: give 8 pixels or more.")
    config = Train(
        instance_dir=settings.instance_dir, concepts=settings.concepts, class_word=settings.class_word,
        token=settings.token, instance_prompt=settings.instance_prompt, class_dir=settings.class_dir,
        resolution=settings.resolution, data=settings.data,
    )  # fmt: skip
    subject = read_subject(config)
    judge = _judge(settings.encoder) if settings.encoder else None
    diagnoses = [diagnose(case, judge) for case in cases(config, subject)]
    name = (
        Path(settings.concepts).stem if settings.concepts else Path(settings.instance_dir).expanduser().resolve().name
    )
    page = Path(settings.out or f"outputs/photos-{name}.html").expanduser()
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_inspection(page, name, diagnoses)
    except OSError as error:
        raise UserError(
            f"The page {page} cannot be written ({error.strerror}). Choose another place: out=..."
        ) from None
    for diagnosis in diagnoses:
        _tell(diagnosis)
    _warn_of_classes(settings.model.source, tuple(one.class_word for one in subject.concepts))
    print(page)
    return diagnoses


def cases(config: Train, subject: "Subject") -> "list[Case]":
    """What the doctor is to look at, one case a subject; held-out photos too, which are measured with."""
    from dreamlab.doctor import Case
    from dreamlab.subject import loading_of

    data = config.data
    step = (data.bucket_step or config.resolution // 64 * 8 or 8) if data.buckets else None
    return [
        Case((*one.photos, *one.held_out), tuple(one.own), one.token, one.class_word, config.resolution, step,
             loading_of(data))
        for one in subject.concepts
    ]  # fmt: skip


def warn(config: Train, subject: "Subject") -> None:
    """Say before training what is wrong with the photos, a line each; never an error."""
    if config.instance_dir == DEMO and not config.concepts:
        return  # crops of one photo, which is known
    _warn_of_classes(config.model.source, tuple(one.class_word for one in subject.concepts))
    _warn_once(tuple(cases(config, subject)), subject.digest)


@functools.lru_cache(maxsize=64)
def _warn_of_classes(source: str, class_words: "tuple[str, ...]") -> None:
    """Say which classes the miniature model has never seen."""
    from dreamlab.progress import say
    from dreamlab.prompt_sets import unknown_to

    for class_word in class_words:
        told = unknown_to(source, class_word)
        if told:
            say(told)


@functools.lru_cache(maxsize=64)
def _warn_once(cases: "tuple[Case, ...]", digest: str) -> None:
    """Once for all trainings of a sweep on these photos."""
    from dreamlab.doctor import diagnose
    from dreamlab.progress import console, say

    for case in cases:
        try:
            remarks = diagnose(case).remarks
        except Exception as error:  # a picture that training can read and the doctor can't must not end the run
            console.print(f"The photos could not be looked at: {error}", markup=False, highlight=False)
            continue
        for remark in remarks:
            if remark.weight != "note":
                say(f"Photos: {remark.sentence}")


def _judge(encoder: str) -> "Judge":
    from dreamlab import encoders
    from dreamlab.doctor import Judge
    from dreamlab.quiet import quiet_imported_libraries

    quiet_imported_libraries()
    return Judge(encoder, encoders.load(encoder).images, LIMITS.get(encoder))


def _tell(diagnosis: "Diagnosis") -> None:
    """A table of the photos, what is wrong with them, and the verdict."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dreamlab.remarks import printable

    case = diagnosis.case
    title = f"{case.token} {case.class_word}: {len(case.photos)} photos at {case.side_px} px"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("photo", "pixels", "cut away", "edges, px", "remarks"):
        table.add_column(heading, overflow="fold")
    for look in diagnosis.looks:
        told = "; ".join(f"{badge}: {detail}" for badge, detail in diagnosis.about(look.path)) or "–"
        blur = "–" if look.blur_px is None else f"{look.blur_px:.2f}"
        size = f"{look.size[0]} x {look.size[1]}"
        table.add_row(*(Text(word) for word in _row(printable(look.path.name), size, look.cut_away, blur, told)))
    # A pipe has no width of its own
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for remark in diagnosis.remarks:
        console.print(Text(f"{remark.weight}: {printable(remark.sentence)}"))
    console.print(Text(printable(diagnosis.sentence), style=f"bold {WORDS[diagnosis.state]}"))


def _row(name: str, size: str, cut_away: float, blur: str, told: str) -> "Sequence[str]":
    return name, size, f"{cut_away:.0%}", blur, told


def main() -> None:
    """The console command dreamlab-inspect."""
    entry.run("inspect", Inspect, inspect)


if __name__ == "__main__":
    main()
