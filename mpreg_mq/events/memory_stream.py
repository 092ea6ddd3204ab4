"""Where the events of a stream stand in the order of the log in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence

Span = tuple[int, int, int]
"""Events of a run: the position and the version before them, and how many there are."""


class Stream:
    """What is known of one stream; its events are among the log's.

    Events with none of another stream's in between are a run. However long it is, it takes two numbers here: the
    version and the position before its first event.
    """

    __slots__ = ("base", "name", "number", "runs", "version")

    def __init__(self, name: str, number: int, base: int = 0) -> None:
        self.name = name
        self.number = number
        """Among the log's streams, from 0."""
        self.base = base
        """Version of the last event that was truncated."""
        self.version = base
        """Version of the last event."""
        self.runs = array("q")
        """Version and position before each run, by turns."""

    def version_at(self, position: int) -> int:
        """Version of the stream at a position within one of its runs; O(log(runs))."""
        runs = self.runs
        run = 2 * bisect_right(range(1, len(runs), 2), position, key=runs.__getitem__) - 2
        return runs[run] + position - runs[run + 1]

    def spans(self, after: int) -> Iterator[Span]:
        """Where the events above a version are that are there now; O(log(runs)) to start."""
        return _spans(self.runs, max(after, self.base), self.version)

    def truncate(self, version: int) -> None:
        """Forget the runs up to a version, but the last one, which may go on."""
        self.runs = self.runs[_run_after(self.runs, version) :]
        self.base = version


def _run_after(runs: Sequence[int], version: int) -> int:
    """Index of the run that the event after a version is in; of the last one, where there is none."""
    return 2 * bisect_right(range(0, len(runs), 2), version, key=runs.__getitem__) - 2


def _spans(runs: Sequence[int], after: int, last: int) -> Iterator[Span]:
    """Spans of the versions above ``after`` up to ``last``; runs that begin meanwhile are above that."""
    if after >= last:
        return
    run = _run_after(runs, after)
    position = runs[run + 1] + after - runs[run]
    while True:
        run += 2
        end = runs[run] if run < len(runs) else last
        if end >= last:
            yield position, after, last - after
            return
        yield position, after, end - after
        after, position = end, runs[run + 1]
