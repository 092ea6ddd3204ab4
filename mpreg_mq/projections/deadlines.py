"""Every moment at which a queue has to act, in one sorted structure (no polling)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

import msgspec


class DeadlineKind(IntEnum):
    """What happens at a deadline."""

    DUE = 0
    LEASE = 1
    TTL = 2
    CIRCUIT = 3
    QUORUM = 4


class Deadline(msgspec.Struct, eq=False):
    """A registered deadline; ``target`` is None once it was removed."""

    when: float
    ordinal: int
    kind: DeadlineKind
    target: Any


_MIN_REMOVED = 256
_NO_ROW: deque[Deadline] = deque()


class Deadlines:
    """Deadlines in time order; adding is O(1) in that order, else O(log n), removing and the next one O(1), amortised.

    Most deadlines never come: a lease is acknowledged, a delayed message purged. A removed one is only marked, and
    goes when it comes first or when the marked ones outnumber the others. Most are also added in order, because
    leases of one length end as they began; those stand in a row of their own, and only the rest in a heap.

    ``earliest`` is never later than the first deadline: before it there is nothing to do.
    """

    __slots__ = ("_heap", "_ordinal", "_removed", "_row", "earliest")

    def __init__(self) -> None:
        # Made with the first deadline: an empty deque takes 760 bytes, and most of many queues are idle.
        self._row: deque[Deadline] = _NO_ROW
        self._heap: list[tuple[float, int, Deadline]] = []
        self._ordinal = 0
        self._removed = 0
        self.earliest = inf

    def __len__(self) -> int:
        return len(self._row) + len(self._heap) - self._removed

    def __iter__(self) -> Iterator[Deadline]:
        """Those registered, in time order; O(n log n)."""
        entries = [*self._row, *(entry for _, _, entry in self._heap)]
        return iter(sorted((entry for entry in entries if entry.target is not None), key=_time_order))

    def add(self, when: float, kind: DeadlineKind, target: object) -> Deadline:
        """Register a deadline; the entry returned is what :meth:`remove` takes."""
        self._ordinal = ordinal = self._ordinal + 1
        entry = Deadline(when, ordinal, kind, target)
        row = self._row
        if row is _NO_ROW:
            row = self._row = deque()
        if not row or row[-1].when <= when:
            row.append(entry)
        else:
            heappush(self._heap, (when, ordinal, entry))
        if when < self.earliest:
            self.earliest = when
        return entry

    def remove(self, entry: Deadline) -> None:
        """Forget a deadline; nothing happens where that was done before."""
        if entry.target is None:
            return
        entry.target = None
        row = self._row
        if row and row[0] is entry:
            row.popleft()
            return
        self._removed = removed = self._removed + 1
        if removed > _MIN_REMOVED and removed * 2 > len(row) + len(self._heap):
            self._forget_removed()

    def _forget_removed(self) -> None:
        self._row = deque(entry for entry in self._row if entry.target is not None)
        self._heap = [item for item in self._heap if item[2].target is not None]
        heapify(self._heap)
        self._removed = 0

    def first(self) -> Deadline | None:
        """The earliest deadline, or None."""
        row, heap = self._row, self._heap
        while row and row[0].target is None:
            row.popleft()
            self._removed -= 1
        while heap and heap[0][2].target is None:
            heappop(heap)
            self._removed -= 1
        first = row[0] if row else None
        if heap and (first is None or heap[0][:2] < (first.when, first.ordinal)):
            first = heap[0][2]
        self.earliest = inf if first is None else first.when
        return first

    def clear(self) -> None:
        """Forget all."""
        self._row = _NO_ROW
        self._heap.clear()
        self._removed = 0
        self.earliest = inf

    def check(self) -> None:
        """Assert that row and heap are in order, and that the count of removed entries is right."""
        row, heap = list(self._row), self._heap
        entries = [*row, *(entry for _, _, entry in heap)]
        assert all(heap[(index - 1) // 2] <= heap[index] for index in range(1, len(heap)))
        assert row == sorted(row, key=_time_order)
        assert self._removed == sum(entry.target is None for entry in entries)
        assert len({entry.ordinal for entry in entries}) == len(entries)
        assert all(self.earliest <= entry.when for entry in entries if entry.target is not None)


def _time_order(entry: Deadline) -> tuple[float, int]:
    return entry.when, entry.ordinal
