"""Every moment at which a queue has to act, in one sorted structure (no polling)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any


class DeadlineKind(IntEnum):
    """What happens at a deadline."""

    DUE = 0
    LEASE = 1
    TTL = 2
    CIRCUIT = 3
    QUORUM = 4


class Deadline:
    """A registered deadline; ``target`` is None once it was removed."""

    __slots__ = ("kind", "ordinal", "target", "when")

    def __init__(self, when: float, ordinal: int, kind: DeadlineKind, target: object) -> None:
        self.when = when
        self.ordinal = ordinal
        self.kind = kind
        self.target: Any = target


_MIN_REMOVED = 256


class Deadlines:
    """Deadlines in time order; adding is O(log n), removing O(1) and the next one O(1), all amortised.

    Most deadlines never come: a lease is acknowledged, a delayed message purged. A removed one is only marked, and
    leaves the heap when it comes first or when the marked ones outnumber the others.
    """

    __slots__ = ("_heap", "_ordinal", "_removed")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Deadline]] = []
        self._ordinal = 0
        self._removed = 0

    def __len__(self) -> int:
        return len(self._heap) - self._removed

    def __iter__(self) -> Iterator[Deadline]:
        """Those registered, in time order; O(n log n)."""
        return (entry for _, _, entry in sorted(self._heap) if entry.target is not None)

    def add(self, when: float, kind: DeadlineKind, target: object) -> Deadline:
        """Register a deadline; the entry returned is what :meth:`remove` takes."""
        self._ordinal = ordinal = self._ordinal + 1
        entry = Deadline(when, ordinal, kind, target)
        heappush(self._heap, (when, ordinal, entry))
        return entry

    def remove(self, entry: Deadline) -> None:
        """Forget a deadline; nothing happens where that was done before."""
        if entry.target is None:
            return
        entry.target = None
        self._removed += 1
        if self._removed > _MIN_REMOVED and self._removed * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[2].target is not None]
            heapify(self._heap)
            self._removed = 0

    def first(self) -> Deadline | None:
        """The earliest deadline, or None."""
        heap = self._heap
        while heap:
            entry = heap[0][2]
            if entry.target is not None:
                return entry
            heappop(heap)
            self._removed -= 1
        return None

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._removed = 0

    def check(self) -> None:
        """Assert that the heap is one, and that the count of removed entries is right."""
        heap = self._heap
        assert all(heap[(index - 1) // 2] <= heap[index] for index in range(1, len(heap)))
        assert self._removed == sum(entry.target is None for _, _, entry in heap)
        assert len({ordinal for _, ordinal, _ in heap}) == len(heap)
