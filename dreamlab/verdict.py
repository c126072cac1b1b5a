"""What to make of a run: was the subject learnt, what did it cost, and which update to keep.

The rule, on several metrics at once and with their intervals (docs/math.md explains it), for each moment u:

    learnt(u)      DINO, of pictures in the photos' own context, has come half of the way from the untouched model's to
                   that between the photos themselves
    copies(u)      more than a tenth of the subject's samples are copies of training photos
    class drift(u) class pictures have come nearer to the photos by three quarters of that same way, and their interval
                   spares 0; or they have lost half of their diversity, and its interval spares 1
    forgetting(u)  pictures of unrelated prompts have drifted by a quarter (1 - cosine)
    words lost(u)  prompts are obeyed less than by the untouched model by a fifth (checked words, else CLIP-T)
    by heart(u)    a held-out photo is denoised a tenth worse than by the untouched model

A run is good if some moment is learnt and free of harm, overfitted if it is learnt but never without harm, underfitted
if it is never learnt. The moment to keep is the best one free of harm: the highest DINO. Called by train.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

RULES = {
    "learnt": 0.5,  # share of the way from the untouched model's DINO to the photos' own
    "copies": 0.1,  # share of the subject's samples
    "class_drift": 0.75,  # of that way, towards the photos
    "collapse": 0.5,  # diversity of the class relative to the untouched model's
    "unrelated": 0.25,  # 1 - cosine to the untouched model's pictures
    "words": 0.2,  # share of what the untouched model obeys
    "held_out": 1.1,  # loss of held-out photos relative to the untouched model's
    "shortest_way": 0.1,  # of DINO: below it, likeness says nothing
}
Row = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """A sentence to act on, and what it rests on."""

    sentence: str
    state: str  # good | overfitted | underfitted | unmeasured
    keep: int | None  # update
    reasons: list[str]
    rules: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def likeness(row: Row) -> float | None:
    """DINO of a moment's pictures in the photos' own context; of all the subject's where none was asked in that."""
    return row.get("eval/dino_near", row.get("eval/dino"))


def way(base: Row) -> float | None:
    """How far there is to go: DINO between the photos minus that of the untouched model's pictures.

    None where it is unknown or too short: photos no more alike than the untouched model's pictures are like them.
    """
    start = likeness(base)
    if "eval/dino_photos" not in base or start is None:
        return None
    distance = base["eval/dino_photos"] - start
    return distance if distance >= RULES["shortest_way"] else None


def is_learnt(base: Row, row: Row) -> bool:
    """Whether a moment's pictures show the subject."""
    return share_of_way(base, row) >= RULES["learnt"]


def share_of_way(base: Row, row: Row) -> float:
    """How much of the way to the photos' likeness a moment has come; 0 where it is unknown."""
    distance, start, now = way(base), likeness(base), likeness(row)
    return 0.0 if distance is None or start is None or now is None else (now - start) / distance


def harms(base: Row, row: Row) -> list[str]:
    """What has gone wrong at a moment, in words."""
    found = []
    if row.get("eval/copies", 0) > RULES["copies"]:
        found.append(f"{row['eval/copies']:.0%} of the samples are copies of photos")
    distance, change = way(base), row.get("eval/pres_change", 0.0)
    if distance is not None and change >= RULES["class_drift"] * distance and row.get("eval/pres_change_low", 0) > 0:
        found.append(f"the class has drifted towards the subject ({change:+.2f})")
    if row.get("eval/collapse", 1) < RULES["collapse"] and row.get("eval/collapse_high", 0) < 1:
        found.append(f"class pictures have {row['eval/collapse']:.0%} of their diversity")
    if row.get("eval/drift_unrelated", 0) >= RULES["unrelated"]:
        found.append(f"unrelated pictures have drifted ({row['eval/drift_unrelated']:.2f})")
    if row.get("probe/held_out_loss", 1) >= RULES["held_out"]:
        found.append(
            f"held-out photos are denoised worse than before ({row['probe/held_out_loss']:.2f} times the loss)"
        )
    for name, title in (("words", "words for styles and backgrounds"), ("clip_t", "prompts")):
        before, now = base.get(f"eval/{name}"), row.get(f"eval/{name}")
        if before is not None and now is not None and before > 0:
            if now < (1 - RULES["words"]) * before:
                found.append(f"{title} are obeyed {now:.2f} instead of {before:.2f}")
            break  # what pixels can answer for is not asked of CLIP again
    return found


def joined(evaluations: Sequence[Row], probes: Sequence[Row]) -> dict[int, Row]:
    """The moments by update, each with the newest probes up to it."""
    told: dict[int, Row] = {}
    for row in evaluations:
        update = int(row["update"])
        known = [probe for probe in probes if probe["update"] <= update]
        told[update] = {**(known[-1] if known else {}), **row}
    return told


def judge(evaluations: Sequence[Row], probes: Sequence[Row] = ()) -> Verdict:
    """The verdict on a run's moments, the first of which is the untouched model (update 0)."""
    moments = joined(evaluations, probes)
    base, later = moments.get(0), sorted(update for update in moments if update > 0)
    if base is None or not later:
        return Verdict("Not measured: there is no moment to compare.", "unmeasured", None, [], RULES)
    if way(base) is None or any(likeness(moments[update]) is None for update in later):
        told = [f"update {update}: {harm}" for update in later for harm in harms(base, moments[update])]
        return Verdict(
            "Likeness is not measured: to this encoder the photos are no more like each other than the untouched"
            " model's pictures are like them." + (f" Harm: {'; '.join(told)}." if told else " No harm was found."),
            "unmeasured", None, told, RULES,
        )  # fmt: skip
    learnt = [update for update in later if is_learnt(base, moments[update])]
    found = {update: harms(base, moments[update]) for update in later}
    reasons = [_told(base, moments[update], update, found[update]) for update in later]
    harmful = [update for update in later if found[update]]
    cost = f"; from {harmful[0]} on: {'; '.join(found[harmful[0]])}" if harmful else ""
    if not learnt:
        sentence = f"The subject is not learnt by update {later[-1]}{cost}: more steps, or a higher lr."
        if harmful:
            sentence = f"The subject is not learnt by update {later[-1]}, and harm is done{cost}: a lower lr."
        return Verdict(sentence, "overfitted" if harmful else "underfitted", None, reasons, RULES)
    clean = [update for update in learnt if not found[update]]
    if not clean:
        sentence = f"Overfitted: the subject is learnt by update {learnt[0]}{cost}. Halve the lr or the steps."
        return Verdict(sentence, "overfitted", learnt[0], reasons, RULES)
    keep = max(clean, key=lambda update: share_of_way(base, moments[update]))
    sentence = f"The subject is learnt by update {learnt[0]}{cost}: keep update {keep}."
    return Verdict(sentence, "good", keep, reasons, RULES)


def should_stop(evaluations: Sequence[Row], kind: str) -> str | None:
    """Why training should end now, by the newest moment and `kind` (memorisation or drift); None: it goes on."""
    if kind == "none" or len(evaluations) < 2:
        return None
    by_heart = ("copies", "held-out")
    told = [
        harm for harm in harms(evaluations[0], evaluations[-1]) if any(w in harm for w in by_heart) == (kind != "drift")
    ]
    return "; ".join(told) or None


def _told(base: Row, row: Row, update: int, found: Sequence[str]) -> str:
    told = f"update {update}: {share_of_way(base, row):.0%} of the way to the photos' likeness"
    return told + "".join(f"; {harm}" for harm in found)
