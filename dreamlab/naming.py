"""The identifier of a training: token=auto takes the best one of trial.py, and a doubtful one is warned of.

The choice is made before a run has its name, which holds the token: a run with token=auto is the run that would have
been given the word. Called by checks.py and train.py.
"""

from dataclasses import asdict
from typing import Any

from dreamlab.assemble import base_model
from dreamlab.identifiers import LETTERS, Vocabulary, doubt
from dreamlab.inversion import tables
from dreamlab.models import Family, pick_device
from dreamlab.processes import local_rank
from dreamlab.progress import say
from dreamlab.runs import cache_dir
from dreamlab.schema import Train
from dreamlab.subject import Subject
from dreamlab.trial import Trial

SHORTLIST = 48  # as in conf/tokens.yaml, like LETTERS, so that the command and trainings share what was found
_chosen: dict[str, str] = {}  # by what decides the choice; the runs of a sweep ask again and again


def best_identifier(config: Train, class_word: str) -> str:
    """The best identifier for something of `class_word` to the base model; told once by each process."""
    decisive: list[Any] = [asdict(config.model), config.objective.zero_terminal_snr, class_word, config.cache_dir]
    key = repr(decisive)
    if key not in _chosen:
        model, device = base_model(config), pick_device(config.device)
        trial = Trial(model, class_word, device, cache_dir(config.cache_dir), config.model.guidance)
        best = trial.search(LETTERS, SHORTLIST)[0]
        _chosen[key] = best.reading.word
        if local_rank() == 0:
            say(
                f"token=auto: {best.reading.word}, {best.pull:.2g} of what a word such as blue says to this model"
                f" (python -m dreamlab.tokens class_word={class_word!r} lists the others).",
            )
    return _chosen[key]


def warn_of_identifiers(model: Family, subject: Subject) -> None:
    """One line for each identifier that the model's tokenizer splits, or that means something already."""
    if tables(model):  # tokens are words of their own, whatever they are made of
        return
    for reading in Vocabulary(model).read([concept.token for concept in subject.concepts]):
        reason = doubt(reading)
        if reason:
            say(
                f"token={reading.word} {reason}: python -m dreamlab.tokens finds better ones, token=auto takes one.",
            )
