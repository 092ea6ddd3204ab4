"""Reading a log's events: which of them, how far, and what to say where reading stops."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from mpreg_mq.errors import EventLogError, InvalidOptionError, MessageQueueError
from mpreg_mq.events import EVENT_TYPES, EventLog, RecordedEvent
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.wording import message_ids
from mpreg_mq.topics import check_pattern, matches

Progress = Callable[[int], None]
"""Told the position reached, now and then."""

SWITCH_SECONDS = 1e-4
"""Turn of a thread while a log is folded."""

PROGRESS_EVERY = 8192
"""Events between two reports of progress."""


class ReadingStoppedError(EventLogError):
    """A log is readable only up to a position; the message says which, and why."""


def silent(position: int) -> None:
    """No progress is shown."""


@attrs.frozen
class EventFilter:
    """Which events are wanted; None means all. ``message`` is the beginning of an id."""

    queue: str | None = None
    message: str | None = None
    topic: str | None = None
    type: str | None = None
    since: Moment | None = None
    until: Moment | None = None

    def __attrs_post_init__(self) -> None:
        """Check what was given.

        Raises:
            InvalidOptionError: there is no such event type.
            InvalidTopicError: the topic pattern is malformed.
        """
        if self.type is not None and self.type not in EVENT_TYPES:
            raise InvalidOptionError(f"type: got {self.type!r}, expected one of {', '.join(sorted(EVENT_TYPES))}")
        if self.topic is not None:
            check_pattern(self.topic)

    def select(self, records: Iterator[RecordedEvent]) -> Iterator[RecordedEvent]:
        """The events that are wanted. A message's later events count as its topic's, for which ids are kept."""
        of_topic: set[str] = set()
        for record in records:
            event = record.event
            if self.until is not None and not self.until.includes(record):
                continue
            if self.topic is not None:
                topic = getattr(event, "topic", None)
                ids = message_ids(event)
                if topic is not None and matches(self.topic, topic):
                    of_topic.update(ids)
                elif of_topic.isdisjoint(ids):
                    continue
            if self.since is not None and not _since(self.since, record):
                continue
            if self.queue is not None and record.stream != QUEUE_STREAMS + self.queue:
                continue
            if self.type is not None and type(event).__name__ != self.type:
                continue
            if self.message is not None and not any(m.startswith(self.message) for m in message_ids(event)):
                continue
            yield record


def _since(moment: Moment, record: RecordedEvent) -> bool:
    if moment.position is not None:
        return record.position >= moment.position
    assert moment.time is not None
    return record.event.at >= moment.time


def read(
    log: EventLog,
    *,
    after: int = 0,
    base: int | None = None,
    until: Moment | None = None,
    queue: str | None = None,
    stream: str | None = None,
    progress: Progress = silent,
) -> Iterator[RecordedEvent]:
    """The log's events in order, in bounded memory: of one queue or stream, or all.

    ``base`` is for who folds them into states as they were at that position: nothing after it may be missing.

    Raises:
        ReadingStoppedError: while iterating, where an event cannot be read, or was compacted after ``base``; it says
            how far reading came.
    """
    position = after = max(after, base or 0)
    if queue is not None:
        stream = QUEUE_STREAMS + queue
    source = log.read_all(after) if stream is None else _of_stream(log, stream, after)
    last = until.position if until is not None else None
    count = 0
    try:
        # Those who compact the log later than this the source itself notices.
        if base is not None and (begin := base_position(log)) > base:
            raise EventLogError(f"the events up to {begin} were compacted meanwhile; read the log again")
        for record in source:
            position = record.position
            count += 1
            if count == PROGRESS_EVERY:
                count = 0
                progress(position)
            if until is not None:
                if last is not None and position > last:
                    return
                if last is None and not until.includes(record):
                    continue
            yield record
    except ReadingStoppedError:
        raise
    except MessageQueueError as error:
        raise stopped(log, position, error) from error
    progress(position)


def _of_stream(log: EventLog, stream: str, after: int) -> Iterator[RecordedEvent]:
    records = log.read_stream(stream)
    return records if not after else (record for record in records if record.position > after)


def stopped(log: EventLog, position: int, error: MessageQueueError) -> ReadingStoppedError:
    """The error of a log that is readable up to a position."""
    return ReadingStoppedError(
        f"{log.location}: readable up to position {position} of {log.last_position()}; then: {error}"
    )


@contextmanager
def folding() -> Iterator[None]:
    """Settings of the interpreter for a long fold.

    Cyclic garbage is collected less often, because a fold makes many objects that live. Threads take turns more often,
    because the one that reads ahead gives up its turn at every row.
    """
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(100_000, 5, 5)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
