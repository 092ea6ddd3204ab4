"""Following a log that somebody writes to, and the queues in it as they change."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_states, unless_overtaken
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import EventFilter, Progress, ReadingStoppedError, read, silent, stopped
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position

POLL_SECONDS = 0.2
"""Time between two looks at a log that is followed: another process's log says nothing when it grows."""


@again_if_overtaken
def tail(log: EventLog, count: int, wanted: EventFilter, *, last: int | None = None) -> list[RecordedEvent]:
    """The last events that are wanted, oldest first; reads back from the end, or ``last``, in growing steps."""
    if last is None:
        last = log.last_position()
    step = max(1000, count)
    after = last
    while after > 0:
        after = max(0, after - step)
        found = deque(wanted.select(read(log, after=after, until=Moment(position=last))), maxlen=count)
        if len(found) == count or after == 0:
            return list(found)
        step *= 4
    return []


def follow(
    log: EventLog,
    after: int,
    wanted: EventFilter,
    *,
    wait: Callable[[float], object] = time.sleep,
    missed: Callable[[int, int], object] = lambda first, last: None,
) -> Iterator[RecordedEvent]:
    """Events after a position that are wanted, for ever: ``wait`` is called whenever there is nothing new.

    ``wait`` ends it by raising. ``missed`` is told the first and last position of events that were compacted before
    they were read.
    """
    position = after

    def arriving() -> Iterator[RecordedEvent]:
        nonlocal position
        while True:
            base = base_position(log)
            if base > position:
                missed(position + 1, base)
                position = base
            last = log.last_position()
            if last <= position:
                wait(POLL_SECONDS)
                continue
            try:
                for record in read(log, base=position):
                    position = record.position
                    yield record
            except ReadingStoppedError:
                if base_position(log) <= position:
                    raise
            else:
                position = max(position, last)

    return wanted.select(arriving())


class Follower:
    """The queues of a log, kept up with it by :meth:`catch_up`."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.position = -1
        self.states: dict[str, QueueState] = {}

    def catch_up(self, progress: Progress = silent) -> int:
        """Fold in what the log has got meanwhile; the number of events that were read for it.

        Where retention has taken some of them away, the snapshots that stand for them are read instead.

        Raises:
            ReadingStoppedError: an event cannot be read or applied.
        """
        return unless_overtaken(self._log, lambda: self._catch_up(progress))

    def _catch_up(self, progress: Progress) -> int:
        base = base_position(self._log)
        if self.position < base:
            # Until all of it is read there is nothing to go on from.
            self.position = -1
            self.states = base_states(self._log)
            self.position = base
        count = 0
        for record in read(self._log, base=self.position, progress=progress):
            count += 1
            if record.stream.startswith(QUEUE_STREAMS):
                name = record.stream.removeprefix(QUEUE_STREAMS)
                state = self.states.get(name)
                if state is None:
                    state = self.states[name] = QueueState()
                try:
                    state.apply(record.event)
                except ProjectionError as error:
                    raise stopped(self._log, self.position, error) from error
            self.position = record.position
        return count
