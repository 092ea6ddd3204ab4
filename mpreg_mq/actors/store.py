"""How a queue actor's events reach the log: straight, or through the journal's thread (principle "log first")."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import attrs

from mpreg_mq.actors.journal import Journal, OnDone
from mpreg_mq.events.log import Append, EventLog
from mpreg_mq.events.types import Event
from mpreg_mq.projections import QueueState

STREAM_PREFIX = "queue:"


def stream_of(queue_name: str) -> str:
    """The stream of a queue."""
    return STREAM_PREFIX + queue_name


@attrs.frozen(eq=False)
class Store:
    """One log for all queues of a manager; a journal where appending can wait for a disk."""

    log: EventLog
    journal: Journal | None

    @classmethod
    def open(cls, log: EventLog) -> Store:
        """A store that writes to this log."""
        return cls(log, Journal.start(log) if log.blocking else None)

    def append(self, stream: str, version: int, events: Sequence[Event]) -> None:
        """Append and wait for the commit, after everything that was submitted before.

        Raises:
            EventLogError: the events are not in the log.
        """
        if self.journal is not None:
            self.journal.flush()
        self.log.append((Append(stream, version, events),))

    def submit(
        self,
        stream: str,
        version: int,
        events: Sequence[Event],
        on_done: OnDone,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """Append soon; ``on_done`` is called with None, or with what went wrong."""
        assert self.journal is not None
        self.journal.submit(Append(stream, version, events), on_done, loop)

    def load(self, stream: str) -> QueueState:
        """The state of a queue, folded from its stream.

        Raises:
            EventLogError: the stream cannot be read.
            ProjectionError: an event cannot be applied.
        """
        return QueueState.replay(record.event for record in self.log.read_stream(stream))

    def close(self) -> None:
        """Commit what was submitted, and close the log."""
        if self.journal is not None:
            self.journal.stop_and_close()
        else:
            self.log.close()

    def stop(self) -> None:
        """Commit what was submitted, and leave the log open for its owner."""
        if self.journal is not None:
            self.journal.stop()
