"""An outside check: the test cases that the ``eventsourcing`` package ships for its recorders, against the SQLite log.

A stored event of that package becomes an event whose identifier is its version there, whose topic and payload are its
topic and state. The versions there begin where the first event says, ours at 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    Notification,
    StoredEvent,
    Subscription,
)
from eventsourcing.tests.persistence import AggregateRecorderTestCase, ApplicationRecorderTestCase

from mpreg_mq.errors import VersionConflictError
from mpreg_mq.events import Append, MessageEnqueued, RecordedEvent, SQLiteEventLog


class LogRecorder(ApplicationRecorder):  # type: ignore[misc]
    """A recorder on a log of ours."""

    def __init__(self, log: SQLiteEventLog) -> None:
        super().__init__()
        self._log = log

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Append all, or none."""
        batch: list[Append] = []
        first: dict[str, int] = {}
        added: dict[str, int] = {}
        for event in stored_events:
            stream = str(event.originator_id)
            if stream not in first:
                record = next(self._log.read_stream(stream), None)
                first[stream] = event.originator_version if record is None else int(_enqueued(record).message_id)
                added[stream] = 0
            expected = event.originator_version - first[stream]
            made = MessageEnqueued(0.0, str(event.originator_version), event.topic, event.state)
            batch.append(Append(stream, expected, (made,)))
        try:
            before = self._log.last_position()
            self._log.append(batch)
        except VersionConflictError as error:
            raise IntegrityError(str(error)) from error
        return [*range(before + 1, before + 1 + len(batch))]

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The events of a stream."""
        found = [
            StoredEvent(originator_id, int(event.message_id), event.topic, event.payload)
            for event in map(_enqueued, self._log.read_stream(str(originator_id)))
            if (gt is None or int(event.message_id) > gt) and (lte is None or int(event.message_id) <= lte)
        ]
        return (found[::-1] if desc else found)[:limit]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Events in the order of the log."""
        after = 0 if start is None else start - inclusive_of_start
        found: list[Notification] = []
        for record in self._log.read_all(after):
            event = _enqueued(record)
            if len(found) == limit or (stop is not None and record.position > stop):
                break
            if not topics or event.topic in topics:
                originator = UUID(record.stream)
                version = int(event.message_id)
                found.append(Notification(originator, version, event.topic, event.payload, record.position))
        return found

    def max_notification_id(self) -> int | None:
        """The last position."""
        return self._log.last_position() or None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """Abstract in the library's base class, and asked for by none of its test cases that run here."""
        raise NotImplementedError


def _enqueued(record: RecordedEvent) -> MessageEnqueued:
    assert isinstance(record.event, MessageEnqueued)
    return record.event


class WithLog:
    """A log in a directory of its own for each test."""

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.log = SQLiteEventLog(Path(self.directory.name) / "log.db", synchronous="OFF")

    def tearDown(self) -> None:
        self.log.close()
        self.directory.cleanup()


class TestAggregateRecorder(WithLog, AggregateRecorderTestCase):  # type: ignore[misc]
    """Streams: versions, conflicts, atomic inserts."""

    def create_recorder(self) -> AggregateRecorder:
        """A recorder that, as those cases want it, tells no positions."""
        recorder = LogRecorder(self.log)
        insert = recorder.insert_events

        def insert_events(stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
            insert(stored_events, **kwargs)

        recorder.insert_events = insert_events  # type: ignore[method-assign]
        return recorder


class TestApplicationRecorder(WithLog, ApplicationRecorderTestCase[LogRecorder]):  # type: ignore[misc]
    """The order of the whole log, and many threads at once."""

    def create_recorder(self) -> LogRecorder:
        """A recorder on the log."""
        return LogRecorder(self.log)


# What was imported is a pattern, not a test.
del AggregateRecorderTestCase, ApplicationRecorderTestCase
