"""What can be wrong with the photos together: too few, too alike, one background, the wrong words.

Where each limit comes from stands beside it; docs/photos.md says how often each is right. Called by doctor.py.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from dreamlab import borders, sameness
from dreamlab.look import Look
from dreamlab.photo_faults import is_sound
from dreamlab.prompt_sets import is_live
from dreamlab.remarks import Remark, names
from dreamlab.subject import Photo

# Below three different photos nothing tells the subject from the picture: the paper (arXiv 2208.12242) takes 3-5, the
# tutorial says 3-5 at least. The paper's own live subjects have 5 or 6. Faces are the hardest; the tutorial wants 10.
FEWEST = 3
ENOUGH_OBJECT, ENOUGH_LIVE, ENOUGH_PERSON = 3, 5, 10
PEOPLE = {"baby", "boy", "child", "face", "girl", "man", "person", "woman"}
# The colours of two borders: half of the paper's pairs share less than 43% in every set; with one background planted
# behind all photos, half share more than 55% in nine sets of ten.
ONE_BACKGROUND = 0.55
COMPARED = 12  # photos at most, evenly chosen, for what all of them have: pairs grow with the square
MARKS_FROM = 5  # photos: by chance alone some spot of three is alike in half of all triples, of four in a tenth
PLAIN = 0.85  # of a border in one colour: studio walls, the sky, white paper


def few(looks: Sequence[Look], groups: Sequence[Sequence[int]], class_word: str) -> list[Remark]:
    """Too few different, or too few sound photos."""
    repeated = {number: group[0] for group in groups for number in group}
    different: dict[int, list[Look]] = {}
    for number, look in enumerate(looks):
        different.setdefault(repeated.get(number, number), []).append(look)
    count = len(different)
    sound = sum(any(map(is_sound, some)) for some in different.values())
    kind, enough = "an object", ENOUGH_OBJECT
    if is_live(class_word):
        is_person = class_word.lower().split()[-1] in PEOPLE
        kind, enough = ("a person", ENOUGH_PERSON) if is_person else ("a live subject", ENOUGH_LIVE)
    there = f"There {'is' if count == 1 else 'are'} {count} different photo{'s' * (count != 1)}"
    if count < FEWEST:
        return [Remark(f"{there}: too few to tell the subject from the picture.",
                       f"Take {max(FEWEST, enough)} or more.", "fault", "too few")]  # fmt: skip
    found = []
    if sound < FEWEST:
        found.append(Remark(f"Only {sound} of {count} different photos are large, sharp and whole enough.",
                            f"Replace the others; {FEWEST} is the least.", "fault", "too few"))  # fmt: skip
    if count < enough:
        found.append(Remark(f"{there}, which is few for {kind}.",
                            f"Take {enough} or more, from several sides.", badge="few"))  # fmt: skip
    return found


def repeats(looks: Sequence[Look], groups: Sequence[Sequence[int]]) -> list[Remark]:
    """Groups of photos that are one photo, or one moment."""
    found = []
    for group in groups:
        paths = [looks[number].path for number in group]
        photos = {path: f"like {names([other for other in paths if other != path])}" for path in paths}
        found.append(Remark(f"{len(paths)} photos are nearly the same and weigh as much as one: {names(paths)}.",
                            "Keep the best of them.", badge="repeated", photos=photos))  # fmt: skip
    return found


def _some(looks: Sequence[Look]) -> Sequence[Look]:
    return looks[:: -(-len(looks) // COMPARED)]


def one_background(looks: Sequence[Look]) -> list[Remark]:
    """Photos before one background, or most of them before a plain one."""
    if len(looks) < FEWEST:
        return []
    shared = [borders.colour_overlap(one.border, other.border) for one, other in combinations(_some(looks), 2)]
    remedy = "Take some elsewhere; or name it in captions, such as 'a photo of a {token} {class_word} on a sofa'."
    if float(np.median(shared)) > ONE_BACKGROUND:
        what = f"The backgrounds share {np.median(shared):.0%} of their colours and will be learnt with the subject."
        return [Remark(what, remedy, badge="one background")]
    plain = {look.path: "plain background" for look in looks if borders.plainness(look.border) > PLAIN}
    if 2 * len(plain) <= len(looks):
        return []
    what = f"{len(plain)} of {len(looks)} photos have a background of one colour, which will be learnt: "
    return [Remark(f"{what}{names(list(plain))}.", remedy, badge="plain", photos=plain)]


def common_marks(looks: Sequence[Look]) -> list[Remark]:
    """Something that all photos have at one place: a watermark, a date, or what stands still behind the subject."""
    is_edged = 2 * sum(bool(look.bars) for look in looks) > len(looks)  # bars are common, and told already
    if len(looks) < MARKS_FROM or is_edged:
        return []
    strength, (x, y) = sameness.common_spot([look.fingerprint for look in _some(looks)])
    if strength < sameness.COMMON_MARKS:
        return []
    place = f"{('top', 'middle', 'bottom')[min(2, int(3 * y))]} {('left', 'centre', 'right')[min(2, int(3 * x))]}"
    what = f"All photos have the same marks at one place ({place}): a watermark, a date, or an unmoved background."
    return [Remark(what, "Crop it off, or take photos without it.", badge="marks")]


def in_class_images(looks: Sequence[Look], own: Sequence[tuple[Path, sameness.Fingerprint]]) -> list[Remark]:
    """Photos of the subject among its class images: the two halves of the loss then pull at one picture."""
    photos = {}
    for look in looks:
        same = [path for path, other in own if sameness.are_copies(look.fingerprint, other)]
        if same:
            photos[look.path] = f"also in class_dir: {names(same)}"
    if not photos:
        return []
    what = f"{len(photos)} of {len(looks)} photos lie among the class images, too: {names(list(photos))}."
    weight = "fault" if 2 * len(photos) > len(looks) else "remark"
    return [Remark(what, "Take them out of class_dir.", weight, "in class_dir", photos)]


def words(photos: Sequence[Photo], token: str, class_word: str) -> list[Remark]:
    """Prompts and captions without the token or the class word."""
    found = []
    for name, word in (("token", token), ("class word", class_word)):
        has = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        missing = {photo.path: f"prompt without {word!r}" for photo in photos if not has.search(photo.prompt)}
        if missing:
            what = f"The prompts of {len(missing)} of {len(photos)} photos lack the {name} {word!r}: "
            is_fault = name == "token" and len(missing) == len(photos)
            remedy = f"Write {{{name.replace(' ', '_')}}} into their captions, or into instance_prompt."
            weight = "fault" if is_fault else "remark"
            found.append(Remark(f"{what}{names(list(missing))}.", remedy, weight, f"no {name}", missing))
    return found
