"""Clients of a log on a failing disk: what they add, and what they were told of it."""

from __future__ import annotations

from collections.abc import Callable

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, Event, MessageCompleted, SQLiteEventLog

FOR_EVER = 1 << 30

Made = list[tuple[str, Event]]
Batch = tuple[list[Append], Made]
"""Appends, and what they add."""


def event(number: int, size: int = 1) -> Event:
    return MessageCompleted(at=float(number), message_id="m" * size)


def two_streams(log: SQLiteEventLog, number: int) -> Batch:
    """Two events for two streams, or for one, the second of them large."""
    made: Made = []
    batch = []
    for stream, size in (("queue:a", 1), (f"queue:{number % 3}", 3000)):
        version = log.stream_version(stream) + sum(name == stream for name, _ in made)
        batch.append(Append(stream, version, (event(number, size),)))
        made.append((stream, event(number, size)))
    return batch, made


class Answered:
    """A client that notes what it was told."""

    def __init__(self) -> None:
        self.acknowledged: Made = []
        self.unknown: Made = []
        """What nobody could say of whether it is stored."""
        self.failures = 0

    def add(self, log: SQLiteEventLog, batch: Batch) -> None:
        """Append a batch; once it failed it is not tried again."""
        try:
            log.append(batch[0])
            self.acknowledge(batch)
        except EventLogError as error:
            self.failures += 1
            if "is not known" in str(error):
                self.unknown += batch[1]

    def acknowledge(self, batch: Batch) -> None:
        """It was said to be stored."""
        self.acknowledged += batch[1]

    def attempt(self, do: Callable[[], object]) -> None:
        """Something that changes no events, and may fail."""
        try:
            do()
        except EventLogError:
            self.failures += 1


def failing(first: int, last: int, error: type[Exception]) -> Callable[[int, str], Exception | None]:
    """A fault of a disk at all operations from one to another."""
    return lambda number, name: error("disk on fire") if first <= number <= last else None
