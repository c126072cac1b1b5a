"""What the doctor says: remarks on photos and on the set, and the verdict they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN_NAMES = 3


@dataclass(frozen=True)
class Remark:
    """One thing that is wrong or worth knowing, in a sentence, with its remedy."""

    what: str
    remedy: str = ""
    weight: str = "remark"  # note: worth knowing | remark | fault: the set is not good before it is mended
    badge: str = ""  # two words of it
    photos: Mapping[Path, str] = field(default_factory=dict)  # those it is about, and what is wrong with each

    @property
    def sentence(self) -> str:
        """What, and what to do."""
        return f"{self.what} {self.remedy}".strip()


def verdict(remarks: Sequence[Remark]) -> tuple[str, str]:
    """The state in one word (good, usable, bad) and the sentence that says why and what to do first."""
    faults = [remark for remark in remarks if remark.weight == "fault"]
    fair = [remark for remark in remarks if remark.weight == "remark"]
    if faults:
        return "bad", f"Not good yet: {faults[0].sentence}"
    if fair:
        return "usable", f"Usable, with {len(fair)} remark{'s' * (len(fair) > 1)}. First: {fair[0].sentence}"
    return "good", "Good: nothing stands in the way of learning from these photos."


def printable(text: str) -> str:
    """A file's name without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def names(paths: Sequence[Path]) -> str:
    """The first names, and how many more there are."""
    told = ", ".join(printable(path.name) for path in paths[:SHOWN_NAMES])
    more = len(paths) - SHOWN_NAMES
    return f"{told} and {more} more" if more > 0 else told
