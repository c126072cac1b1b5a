"""Python's garbage collector, spared the half a million objects that libraries leave as they are imported.

It would go through them again and again while more arrive, which is a fifth of the time that importing takes, and once
more as the process ends. They are there to stay. Called by commands as they begin, and before a model is loaded.
"""

import atexit
import gc

USUAL = gc.get_threshold()
SELDOM = (100_000, 50, 100)


def put_off() -> None:
    """Collect seldom while a command imports what it needs, and nothing as it ends."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)


def resume() -> None:
    """Collect as usual again. Not a word of freezing here: a run's trainer would be kept by what it refers to."""
    if gc.get_threshold() == SELDOM:
        gc.set_threshold(*USUAL)
