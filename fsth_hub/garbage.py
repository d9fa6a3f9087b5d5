"""The garbage collector, kept from what it cannot help with."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """
    Without the collector, which while libraries are imported and models loaded looks again and again at hundreds of
    thousands of objects, of which all stay. Where it was off already it stays off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()  # and back: what is new counts as old, so that it is not looked at at once, but still in time
            gc.unfreeze()
            gc.enable()
