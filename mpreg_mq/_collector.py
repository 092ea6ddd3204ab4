"""Python's cyclic garbage collector, and when it may rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector from running meanwhile, unless it is off already.

    For folds of many events: they make no cycles that end before they do, so each of its runs would only look at
    what is there, again and again.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
