"""While a command imports what it needs, the garbage collector is seldom called; afterwards as usual."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from dreamlab import garbage


class Circle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def own() -> Iterator[None]:
    before = gc.get_threshold()
    gc.unfreeze()  # a command that ran in this process before may have set things aside
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("own")
def test_a_circle_of_what_came_before_and_after_resuming_is_collected() -> None:
    garbage.put_off()
    assert gc.get_threshold() == garbage.SELDOM
    callback = Circle()
    garbage.resume()
    assert gc.get_threshold() == garbage.USUAL
    trainer = Circle()
    trainer.own, callback.own = callback, trainer
    seen = weakref.ref(callback), weakref.ref(trainer)
    del callback, trainer
    gc.collect()
    assert seen[0]() is None and seen[1]() is None


@pytest.mark.usefixtures("own")
def test_only_what_is_set_aside_is_left_alone() -> None:
    garbage.put_off()
    imported = weakref.ref(Circle())
    garbage.set_aside()
    counted, later = gc.get_freeze_count(), weakref.ref(Circle())
    garbage.set_aside()  # once for a process
    gc.collect()
    assert imported() is not None and later() is None
    assert counted > 0 and gc.get_freeze_count() <= counted and gc.get_threshold() == garbage.USUAL


@pytest.mark.usefixtures("own")
def test_who_has_not_put_it_off_keeps_a_collector_of_their_own() -> None:
    gc.set_threshold(500, 5, 5)
    garbage.set_aside()
    garbage.resume()
    assert gc.get_threshold() == (500, 5, 5) and gc.get_freeze_count() == 0
