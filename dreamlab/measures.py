"""What is measured, in words: how each number of a run is called, which way is better, and what it says.

The names are the paper's (arXiv 2208.12242); metrics.py and probes.py have the equations.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number of a moment; `better` is up, down, or the value that means unharmed."""

    key: str
    label: str
    better: str
    about: str


MEASURES = (
    Measure("eval/dino", "DINO", "up", "subject fidelity: likeness of samples and photos"),
    Measure("eval/dino_near", "DINO, near", "up", "the same, of prompts in the photos' own context"),
    Measure("eval/clip_i", "CLIP-I", "up", "subject fidelity, by CLIP"),
    Measure("eval/clip_t", "CLIP-T", "up", "prompt fidelity: likeness of samples and prompts"),
    Measure("eval/words", "words obeyed", "up", "share of the prompts' checkable words that are obeyed"),
    Measure("eval/div", "DIV", "up", "diversity: distance between samples of one prompt"),
    Measure("eval/copies", "copies", "down", "share of samples nearer to a training photo than unseen photos are"),
    Measure("eval/nearness", "nearness", "down", "how much nearer samples lie to a training photo than unseen photos"),
    Measure("eval/pres", "PRES", "down", "likeness of the class's samples and the subject's photos"),
    Measure("eval/pres_change", "PRES change", "0", "the same, against the untouched model"),
    Measure("eval/collapse", "class diversity left", "1", "diversity of the class's samples after over before"),
    Measure("eval/drift_class", "class drift", "down", "how far the class's samples moved"),
    Measure("eval/drift_unrelated", "unrelated drift", "down", "how far samples of other things moved"),
    Measure("probe/train_loss", "loss on training photos", "down", "against the untouched model"),
    Measure("probe/held_out_loss", "loss on held-out photos", "down", "against the untouched model"),
    Measure("probe/class_loss", "loss on the class", "1", "against the untouched model"),
    Measure("probe/class_drift", "drift of the class's predictions", "down", "relative to their size"),
    Measure("probe/unrelated_drift", "drift of other predictions", "down", "relative to their size"),
    Measure("probe/empty_drift", "drift without a prompt", "down", "relative to their size"),
)
ARROWS = {"up": "↑", "down": "↓"}


def interval(row: Mapping[str, float], key: str) -> tuple[float, float | None, float | None] | None:
    """Value, low and high of a measure, None where it was not taken."""
    return (row[key], row.get(f"{key}_low"), row.get(f"{key}_high")) if key in row else None
