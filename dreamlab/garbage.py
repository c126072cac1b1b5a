"""Python's garbage collector, spared the half a million objects that libraries leave as they are imported.

It would go through them again and again while more arrive, which is a fifth of the time that importing takes, then for
a third of a second every hundred updates, and once more as the process ends. They are there to stay.
"""

import atexit
import gc

USUAL = gc.get_threshold()
SELDOM = (100_000, 50, 100)


def put_off() -> None:
    """Collect seldom while a command imports what it needs, and nothing as it ends; called as it begins."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)


def set_aside() -> None:
    """Leave alone what is there by now, and collect the rest as usual again.

    Called once all is imported, and before there is anything that a trainer, a model or a callback will ever be told
    of: whatever such an object refers to would stay with it.
    """
    if gc.get_threshold() == SELDOM:
        gc.freeze()
    resume()


def resume() -> None:
    """Collect as usual again; called before a model is loaded."""
    if gc.get_threshold() == SELDOM:
        gc.set_threshold(*USUAL)
