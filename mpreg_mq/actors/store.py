"""How a queue actor's events reach the log: straight, or through the journal's thread (principle "log first")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import attrs

from mpreg_mq.actors.journal import Journal
from mpreg_mq.actors.submissions import OnDone, Record
from mpreg_mq.actors.turns import Turns
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.log import Append, EventLog, Snapshot, retaining
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.events.types import Event
from mpreg_mq.model import Durability
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.loading import load_state

STREAM_PREFIX = "queue:"

DEFAULT_SNAPSHOT_EVENTS = 100_000
DEFAULT_BUFFERED_MILLISECONDS = 50
LEAST_EVENTS_AT_THE_END = 100
"""A queue that closes saves its state if there are at least so many events since it last did."""


def stream_of(queue_name: str) -> str:
    """The stream of a queue."""
    return STREAM_PREFIX + queue_name


@attrs.frozen(eq=False)
class Store:
    """One log for all queues of a manager; a journal where appending can wait for a disk.

    ``buffered_seconds`` is how long the oldest event may be on its way to the disk while replies do not wait for it;
    None where replies wait. States are saved every ``snapshot_events`` events of a queue, and never where that is None.
    """

    log: EventLog
    journal: Journal | None
    snapshot_events: int | None = DEFAULT_SNAPSHOT_EVENTS
    buffered_seconds: float | None = None
    turns: Turns = attrs.field(factory=Turns)

    @classmethod
    def open(cls, log: EventLog, *, snapshot_events: int | None = DEFAULT_SNAPSHOT_EVENTS) -> Store:
        """A store that writes to this log.

        Raises:
            ConfigurationError: it was opened read-only.
        """
        if getattr(log, "read_only", False):
            raise ConfigurationError(
                f"log: got {log.location} opened read-only, in which queues cannot keep anything; open it for writing"
            )
        return cls(log, Journal.start(log) if log.blocking else None, snapshot_events)

    def at(
        self, durability: Durability, buffered_milliseconds: int, in_memory: Callable[[], EventLog] = MemoryEventLog
    ) -> Store:
        """This store as queues of another durability use it; a new log in memory for those that want no other.

        A log in memory is as fast and as durable as it gets, whatever is asked for.
        """
        if self.journal is None or durability is Durability.COMMITTED:
            return self
        if durability is Durability.BUFFERED:
            return attrs.evolve(self, buffered_seconds=buffered_milliseconds / 1000)
        return Store(in_memory(), None, turns=self.turns)

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
        *,
        urgent: bool = True,
        at_once: bool = False,
        record: Record | None = None,
    ) -> None:
        """Append soon; ``on_done`` is called with None, or with what went wrong. See :meth:`Journal.submit`."""
        assert self.journal is not None
        append = Append(stream, version, events)
        self.journal.submit(append, on_done, loop, urgent=urgent, at_once=at_once, record=record)

    def load(self, stream: str) -> QueueState:
        """The state of a queue: its newest snapshot that can be read, and the events since; else all its events.

        Raises:
            EventLogError: the stream cannot be read.
            CorruptLogError: its first events were truncated, and what stands for them cannot be read.
            ProjectionError: an event cannot be applied.
        """
        return load_state(self.log, stream)

    def save(self, stream: str, state: QueueState) -> None:
        """Keep a snapshot of a state, once the events that lead to it are committed.

        If they are not, the log refuses it: there are no events at its version then.
        """
        log = retaining(self.log)
        if self.journal is None or log is None:
            return
        snapshot = Snapshot(stream, state.version, state.dump())
        self.journal.do(lambda: log.save_snapshot(snapshot))

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
