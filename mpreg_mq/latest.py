"""The latest of what comes again and again, for those who have to recognise it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Latest(OrderedDict[K, V], Generic[K, V]):
    """The latest by key: where there are more than ``most``, the oldest is forgotten.

    Not a plain dict, which looks for its oldest entry among the places of all that were removed since it grew last.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def note(self, key: K, value: V) -> None:
        """Keep a value under a key; what is noted again is as old as it was. O(1)."""
        self[key] = value
        if len(self) > self._most:
            self.popitem(last=False)
