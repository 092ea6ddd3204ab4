"""A new log that is the old one up to a moment, to try things on."""

from __future__ import annotations

import os
from pathlib import Path

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, Event, EventLog, SQLiteEventLog
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, read, silent

EVENTS_PER_APPEND = 1000


def fork(
    log: EventLog, target: str | os.PathLike[str], *, at: Moment | None = None, progress: Progress = silent
) -> int:
    """Copy the log up to a moment, or all of it, into a new SQLite log; the number of events.

    Streams, versions and positions are those of the old log. An unfinished copy is removed again.

    Raises:
        EventLogError: the target exists or cannot be written.
        ReadingStoppedError: the log cannot be read so far.
    """
    path = Path(target)
    if path.exists():
        raise EventLogError(f"fork into {path}: the file exists; name one that does not")
    copy = SQLiteEventLog(path, synchronous="NORMAL")
    try:
        count = fork_into(log, copy, at=at, progress=progress)
        copy.sync()
    except BaseException:
        copy.close()
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)
        raise
    copy.close()
    return count


def fork_into(log: EventLog, copy: EventLog, *, at: Moment | None = None, progress: Progress = silent) -> int:
    """Copy the log up to a moment into an empty log; the number of events. Memory is bounded."""
    count = 0
    batch: list[Append] = []
    events: list[Event] = []
    pending = 0
    for record in read(log, until=at, progress=progress):
        if not batch or batch[-1].stream != record.stream:
            events = []
            batch.append(Append(record.stream, record.version - 1, events))
        events.append(record.event)
        count += 1
        pending += 1
        if pending == EVENTS_PER_APPEND:
            copy.append(batch)
            batch, pending = [], 0
    copy.append(batch)
    return count
