"""What is imported is left alone by the garbage collector; what comes later is collected as usual."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from dreamlab import garbage


class Circle:
    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def usual() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("usual")
def test_only_what_comes_after_resuming_is_collected() -> None:
    gc.collect()
    garbage.put_off()
    earlier = weakref.ref(Circle())
    garbage.resume()
    later = weakref.ref(Circle())
    gc.collect()
    assert earlier() is not None and later() is None
    assert gc.get_threshold() == garbage.USUAL


@pytest.mark.usefixtures("usual")
def test_who_has_not_put_it_off_keeps_a_collector_of_their_own() -> None:
    gc.set_threshold(500, 5, 5)
    frozen = gc.get_freeze_count()
    garbage.resume()
    assert gc.get_threshold() == (500, 5, 5) and gc.get_freeze_count() == frozen
