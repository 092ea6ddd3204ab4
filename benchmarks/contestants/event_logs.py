"""Event logs: appending to one, and folding what it holds into the full state."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contestants.base import library
from benchmarks.contestants.life import beginning, bodies_of, lives
from benchmarks.harness.model import Context, Values
from mpreg_mq.events import Append, Event, MemoryEventLog, SQLiteEventLog
from mpreg_mq.events.log import EventLog
from mpreg_mq.events.types import MessageAcknowledged, MessageDelivered, MessageEnqueued
from mpreg_mq.projections.loading import load_state

RATE = "events/s"
STREAM = "queue:bench"
EVENTS_PER_COMMIT = 100
EVENTS_PER_SECOND = 100_000
"""About how many events are replayed for each second that a round may take; all sides replay as many."""

EVENTS_OF_A_LIFE = 3


def messages_for(context: Context) -> int:
    """How many messages are alike for all sides."""
    return max(100, int(EVENTS_PER_SECOND * context.seconds / EVENTS_OF_A_LIFE))


def our_events(context: Context) -> list[Event]:
    """The whole stream of a queue whose messages are all done."""
    return [*beginning(), *lives(context.payloads.take(messages_for(context)))]


class Replay:
    """Ours, as a queue is recovered where its log has no snapshot: read, check, decode and fold every event."""

    def __init__(self, context: Context, log: str) -> None:
        self._context = context
        self._log_name = log

    async def prepare(self) -> None:
        """Write the log."""
        events = our_events(self._context)
        self._log: EventLog
        self._log = (
            SQLiteEventLog(self._context.directory / "log.db") if self._log_name == "sqlite" else MemoryEventLog()
        )
        self._log.append((Append(STREAM, 0, events),))
        self._count = len(events)
        await self.measure()

    async def measure(self) -> Values:
        """Events a second."""
        begun = time.perf_counter()
        state = load_state(self._log, STREAM)
        spent = time.perf_counter() - begun
        if state.version != self._count:
            raise RuntimeError(f"replayed {state.version} events of {self._count}")
        return {RATE: self._count / spent}

    async def close(self) -> None:
        """Close the log."""
        self._log.close()


class AppendEvents:
    """Ours: encode and append, a commit for every 100 events."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._runs = 0

    async def prepare(self) -> None:
        """Make the events."""
        self._events = our_events(self._context)[: max(1_000, messages_for(self._context))]

    async def measure(self) -> Values:
        """Events a second, on a new file."""
        self._runs += 1
        path = self._context.directory / f"log-{self._runs}.db"
        log = SQLiteEventLog(path)
        begun = time.perf_counter()
        for start in range(0, len(self._events), EVENTS_PER_COMMIT):
            log.append((Append(STREAM, start, self._events[start : start + EVENTS_PER_COMMIT]),))
        spent = time.perf_counter() - begun
        log.close()
        path.unlink()
        return {RATE: len(self._events) / spent}

    async def close(self) -> None:
        """Nothing is open between the rounds."""


class DecodeLoop:
    """msgspec alone: the bytes of a log into its event classes, and nothing done with them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def prepare(self) -> None:
        """Encode the events."""
        kinds = (MessageEnqueued, MessageDelivered, MessageAcknowledged)
        self._decoders = [msgspec.msgpack.Decoder(kind).decode for kind in kinds]
        bodies = bodies_of(self._context.payloads.take(messages_for(self._context)))
        self._lives = list(zip(bodies[0::3], bodies[1::3], bodies[2::3], strict=True))

    async def measure(self) -> Values:
        """Events a second."""
        enqueued, delivered, acknowledged = self._decoders
        begun = time.perf_counter()
        for first, second, third in self._lives:
            enqueued(first)
            delivered(second)
            acknowledged(third)
        return {RATE: EVENTS_OF_A_LIFE * len(self._lives) / (time.perf_counter() - begun)}

    async def close(self) -> None:
        """Nothing to close."""


class EventSourcing:
    """``eventsourcing`` with its SQLite recorder: an aggregate for the queue, an event for each step of a message."""

    share = 20
    """It takes that many times as long, so it gets that much less to do."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._runs = 0

    async def prepare(self) -> None:
        """Define the aggregate."""
        library("eventsourcing.application")
        from benchmarks.contestants.eventsourcing_queue import QueueApplication

        self._application: Any = QueueApplication
        count = max(100, messages_for(self._context) // self.share)
        self._messages = self._context.payloads.take(count)

    def _open(self) -> tuple[Any, Path]:
        self._runs += 1
        directory = self._context.directory / f"run-{self._runs}"
        directory.mkdir()
        path = directory / "events.db"
        settings = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
        return self._application(env=settings), directory

    def _appended(self, application: Any) -> tuple[Any, float]:
        """The aggregate's id, and the seconds it took to append the events."""
        begun = time.perf_counter()
        aggregate_id = application.live(self._messages, EVENTS_PER_COMMIT)
        return aggregate_id, time.perf_counter() - begun

    async def measure(self) -> Values:
        """Events a second appended, on a new file."""
        application, directory = self._open()
        _, spent = self._appended(application)
        application.close()
        shutil.rmtree(directory)
        return {RATE: EVENTS_OF_A_LIFE * len(self._messages) / spent}

    async def close(self) -> None:
        """Nothing is open between the rounds."""


class EventSourcingReplay(EventSourcing):
    """``eventsourcing``: an aggregate rebuilt from its stored events."""

    async def prepare(self) -> None:
        """Write the events."""
        await super().prepare()
        self._opened, self._directory = self._open()
        self._aggregate_id, _ = self._appended(self._opened)

    async def measure(self) -> Values:
        """Events a second replayed."""
        begun = time.perf_counter()
        aggregate = self._opened.repository.get(self._aggregate_id)
        spent = time.perf_counter() - begun
        expected = EVENTS_OF_A_LIFE * len(self._messages)
        if aggregate.acknowledged != len(self._messages):
            raise RuntimeError(f"replayed {aggregate.acknowledged} messages of {len(self._messages)}")
        return {RATE: expected / spent}

    async def close(self) -> None:
        """Close the recorder."""
        self._opened.close()
