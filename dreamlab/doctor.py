"""The doctor: looks at a subject's photos before anything is learnt from them.

Photos decide more than any setting, and what is wrong with them shows only after training. Every remark is a sentence
with its remedy; nothing is ever refused. Called by inspect.py, and by train.py for its warnings.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from dreamlab import photo_faults, set_faults
from dreamlab.look import Look, look_at
from dreamlab.photos import UPRIGHT, Loading, read_photo
from dreamlab.remarks import Remark, verdict
from dreamlab.sameness import Fingerprint, alike, fingerprint
from dreamlab.subject import Photo

Encode = Callable[[Sequence[Image.Image]], Tensor]  # to features of unit length (N, d)

_ENCODED_PX = 256  # least side that encoders are given


@dataclass(frozen=True)
class Case:
    """One subject and how its photos will be cut."""

    photos: tuple[Photo, ...]
    own: tuple[Photo, ...]  # the person's class images
    token: str
    class_word: str
    side_px: int
    bucket_step: int | None = None
    loading: Loading = UPRIGHT


@dataclass(frozen=True)
class Judge:
    """An encoder, and how alike to it photos may be on average; None where that isn't known."""

    name: str
    encode: Encode
    limit: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What was seen, what is to be said of it, and the verdict: good, usable or bad."""

    case: Case
    looks: list[Look]
    remarks: list[Remark]
    state: str
    sentence: str

    def about(self, path: Path) -> list[tuple[str, str]]:
        """The remarks on one photo: (two words, what is wrong with it)."""
        return [(remark.badge, remark.photos[path]) for remark in self.remarks if path in remark.photos]


def diagnose(case: Case, judge: Judge | None = None) -> Diagnosis:
    """Look at all photos of a case; `judge` looks for too few angles, too."""
    with ThreadPoolExecutor() as pool:  # Pillow and NumPy work beside Python
        looks = list(
            pool.map(
                lambda photo: look_at(photo.path, case.side_px, case.bucket_step, case.loading, photo.mask), case.photos
            )
        )
        own = list(pool.map(_known, case.own))
    groups = alike([look.fingerprint for look in looks])
    first = [look for number, look in enumerate(looks) if not any(number in group[1:] for group in groups)]
    remarks = [
        *set_faults.few(looks, groups, case.class_word),
        *set_faults.in_class_images(looks, own),
        *set_faults.words(case.photos, case.token, case.class_word),
        *photo_faults.faults(looks, case.side_px),
        *set_faults.repeats(looks, groups),
        *set_faults.one_background(first),
        *set_faults.common_marks(first),
        *(_few_angles(first, judge) if judge else ()),
    ]
    remarks.sort(key=lambda remark: ("fault", "remark", "note").index(remark.weight))
    return Diagnosis(case, looks, remarks, *verdict(remarks))


def _known(photo: Photo) -> tuple[Path, Fingerprint]:
    return photo.path, fingerprint(read_photo(photo.path, least_px=_ENCODED_PX))


def _few_angles(looks: Sequence[Look], judge: Judge) -> list[Remark]:
    """How alike the photos are to an encoder, and a remark where they are too alike."""
    if len(looks) < 2:
        return []
    features = judge.encode([read_photo(look.path, least_px=_ENCODED_PX) for look in looks])
    pairs = features @ features.T
    mean = float((pairs.sum() - pairs.diagonal().sum()) / (len(looks) * (len(looks) - 1)))
    told = f"Photos are {mean:.2f} alike to {judge.name} on average"
    if judge.limit is None or mean <= judge.limit:
        return [Remark(f"{told}.", weight="note", badge="angles")]
    what = f"{told}, as crops of one photo are: the subject is shown from too few sides."
    return [Remark(what, "Walk around it, and change distance and light.", badge="few angles")]
