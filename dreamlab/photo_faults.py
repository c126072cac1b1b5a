"""What can be wrong with a single photo, as one table of rules.

Where each limit comes from stands beside it; docs/photos.md says how often each is right. Called by doctor.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dreamlab.look import Look
from dreamlab.remarks import Remark, names

# An edge that a lens and a sensor draw well is 0.2-0.8 px wide in the paper's photos at 64-512 px; blurred by 1.5 px
# more, none of them is below 0.98.
BLUR_PX = 0.9
VERY_BLURRED_PX = 1.5
# The tutorial's class images had 75, whose artefacts were learnt; below 40 blocks are plain to see.
LOW_QUALITY, VERY_LOW_QUALITY = 40, 20
# The paper's photos, saved at 90, have 1.0-1.6, and at 70 at most 2.41; at 20 a third of them has more than this.
BLOCKS = 2.5
ENLARGED = 1.5  # a photo of 340 px at 512: half of what the model sees is guessed
CUT_AWAY = 0.35  # a 3:2 photo loses 33%, a 16:9 photo 44%
SUBJECT_CUT = 0.1  # of the mask
TRANSPARENT = 0.01  # of the pixels; less is the soft rim of a rounded corner


@dataclass(frozen=True)
class Rule:
    """A fault: what is wrong with a photo that has it, what is said of all that have it, and what to do."""

    badge: str
    detail: Callable[[Look], str | None]
    told: str  # behind "3 of 8 photos"; {side} is the crop's
    remedy: str
    is_serious: Callable[[Look], bool] = lambda look: False  # such a photo teaches more of its fault than it should


def _blur(look: Look) -> str | None:
    return f"edges {look.blur_px:.1f} px wide" if look.blur_px is not None and look.blur_px > BLUR_PX else None


def _compression(look: Look) -> str | None:
    if look.quality is not None and look.quality < LOW_QUALITY:
        return f"JPEG quality {look.quality}"
    return f"blocks {look.blocks:.1f} times as steep" if look.blocks is not None and look.blocks > BLOCKS else None


def _bars(look: Look) -> str | None:
    return ", ".join(f"{side} {share:.0%}" for side, share in look.bars.items()) or None


def _transparent(look: Look) -> str | None:
    is_masked = look.subject_cut is not None
    return f"{look.transparent:.0%} transparent" if look.transparent > TRANSPARENT and not is_masked else None


def _subject_cut(look: Look) -> str | None:
    is_cut = look.subject_cut is not None and look.subject_cut > SUBJECT_CUT
    return f"{look.subject_cut:.0%} of the subject outside" if is_cut else None


RULES = (
    Rule(
        "too small",
        lambda look: f"enlarged {look.enlarged:.2g} times" if look.enlarged > 1 else None,
        "smaller than the crop of {side} px and enlarged, which is learnt as softness",
        "Take larger ones, or a smaller resolution.",
        lambda look: look.enlarged > ENLARGED,
    ),
    Rule(
        "blurred",
        _blur,
        "blurred at {side} px, and blur is learnt",
        "Leave them out, or take sharper ones.",
        lambda look: look.blur_px is not None and look.blur_px > VERY_BLURRED_PX,
    ),
    Rule(
        "compressed",
        _compression,
        "so strongly compressed that blocks are learnt",
        "Use the camera's own files, not a messenger's.",
        lambda look: look.quality is not None and look.quality < VERY_LOW_QUALITY,
    ),
    Rule(
        "cut away",
        lambda look: f"the crop leaves out {look.cut_away:.0%}" if look.cut_away > CUT_AWAY else None,
        f"so long or wide that the crop leaves out more than {CUT_AWAY:.0%}",
        "Crop them around the subject, or data.buckets=true.",
    ),
    Rule(
        "subject cut",
        _subject_cut,
        "cropped so that part of the masked subject is lost",
        "Crop them around the subject, or data.buckets=true.",
    ),
    Rule("bars", _bars, "edged by bars of one colour, which are learnt", "Crop the bars off."),
    Rule(
        "transparent",
        _transparent,
        "partly transparent, and the one colour behind them is learnt",
        "Use photos with their backgrounds, or data.mask=alpha.",
    ),
    Rule(
        "frames",
        lambda look: f"{look.frames} frames" if look.frames > 1 else None,
        "animated or of several pages: only the first is used",
        "Save the pictures you mean as files of their own.",
    ),
    Rule(
        "sideways",
        lambda look: "turned by EXIF" if look.is_sideways else None,
        "lying on their side or mirrored, since data.exif=false leaves them as the sensor was held",
        "Use data.exif=true.",
    ),
)


def faults(looks: Sequence[Look], side_px: int) -> list[Remark]:
    """A remark for each rule that a photo breaks."""
    found = []
    for rule in RULES:
        photos = {look.path: detail for look in looks if (detail := rule.detail(look))}
        if photos:
            verb = "is" if len(photos) == 1 else "are"
            count = f"{len(photos)} of {len(looks)} photos {verb}"
            what = f"{count} {rule.told.format(side=side_px)}: {names(list(photos))}."
            found.append(Remark(what, rule.remedy, badge=rule.badge, photos=photos))
    return found


def is_sound(look: Look) -> bool:
    """Whether a photo has no serious fault."""
    return not any(rule.is_serious(look) for rule in RULES)
