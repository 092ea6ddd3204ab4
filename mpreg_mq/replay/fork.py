"""A new log that is the old one up to a moment, to try things on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, Event, EventLog, RecordedEvent, SQLiteEventLog
from mpreg_mq.events.jsonlines import SUFFIXES
from mpreg_mq.events.log import retaining
from mpreg_mq.events.transfer import bases_of
from mpreg_mq.events.types import AudienceFixed, MessageDelivered
from mpreg_mq.replay.base import again_if_overtaken, base_states, check_reaches
from mpreg_mq.replay.groups import Group, groups
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, read, silent
from mpreg_mq.replay.source import base_position

EVENTS_PER_APPEND = 1000


@attrs.frozen
class Forked:
    """What was copied: so many events, up to this position of the old log."""

    events: int
    position: int


@again_if_overtaken
def fork(
    log: EventLog, target: str | os.PathLike[str], *, at: Moment | None = None, progress: Progress = silent
) -> Forked:
    """Copy the log up to a moment, or all of it, into a new SQLite log.

    Streams, versions and positions are those of the old log, and so are the snapshots in place of compacted events. A
    position within a decision is taken as the one before it: a queue could not go on from the middle. An unfinished
    copy is removed again.

    Raises:
        EventLogError: the target exists, has the name of an export or cannot be written, or the log begins only after
            the moment.
        ReadingStoppedError: the log cannot be read so far.
    """
    path = Path(target)
    if path.exists():
        raise EventLogError(f"fork into {path}: the file exists; name one that does not")
    if path.name.endswith(SUFFIXES):
        raise EventLogError(
            f"fork into {path}: the name is that of an export, expected one of an SQLite log; "
            "name it .db, and export that with mpreg-mq log export where JSON lines are wanted"
        )
    check_reaches(log, at)
    copy = SQLiteEventLog(path, synchronous="NORMAL")
    try:
        forked = fork_into(log, copy, at=at, progress=progress)
        copy.sync()
    except BaseException:
        copy.close()
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-head", f"{path.name}-lock"):
            path.with_name(name).unlink(missing_ok=True)
        raise
    copy.close()
    return forked


def fork_into(log: EventLog, copy: EventLog, *, at: Moment | None = None, progress: Progress = silent) -> Forked:
    """Copy the log up to a moment into an empty log; see :func:`fork`. Memory is bounded.

    Raises:
        EventLogError: as :func:`fork` does; or the log is compacted, and ``copy`` cannot represent that.
        ReadingStoppedError: the log cannot be read so far.
    """
    # Snapshots that are later than the moment are refused before anything is copied.
    position = base = base_position(log)
    base_states(log, until=at)
    _adopt_bases(log, base, copy)
    count = 0
    batch: list[Append] = []
    events: list[Event] = []
    pending = 0
    for record in _whole_decisions(log, base, at, progress):
        if not batch or batch[-1].stream != record.stream:
            events = []
            batch.append(Append(record.stream, record.version - 1, events))
        events.append(record.event)
        position = record.position
        count += 1
        pending += 1
        if pending == EVENTS_PER_APPEND:
            copy.append(batch)
            batch, pending = [], 0
    copy.append(batch)
    return Forked(count, position)


def _adopt_bases(log: EventLog, base: int, copy: EventLog) -> None:
    """Begin the copy where the log begins."""
    bases = bases_of(log)
    if not bases:
        return
    into = retaining(copy)
    if into is None:
        raise EventLogError(
            f"fork: the first events of {log.location} are compacted, which {copy.location} cannot represent; "
            "fork into an SQLite log"
        )
    into.adopt(base, bases)


def _whole_decisions(log: EventLog, base: int, at: Moment | None, progress: Progress) -> Iterator[RecordedEvent]:
    """The records up to a moment, without those of a decision that goes on after it.

    The events of a decision have one time, so only a position can lie within one.
    """
    if at is None or at.position is None:
        yield from read(log, base=base, until=at, progress=progress)
        return
    for _, records in groupby(read(log, base=base, progress=progress), lambda record: record.stream):
        for group in _divided(records):
            if group[-1].position > at.position:
                return
            yield from group


def _divided(records: Iterable[RecordedEvent]) -> Iterator[Group]:
    """The records of one stream by decisions; some that may be two are together.

    Whether an audience was there before a subscription that came at the same time takes a fold to know. It is kept with
    the subscription, which may have entered it, and with the fetch, which may have fixed it.
    """
    kept: Group = []
    for group in groups(records, lambda _: True):
        if kept and not _may_have_fixed(group[0].event, kept[-1].event):
            yield kept
            kept = []
        kept = kept + group
    if kept:
        yield kept


def _may_have_fixed(event: Event, before: Event) -> bool:
    return (
        isinstance(before, AudienceFixed)
        and isinstance(event, MessageDelivered)
        and event.pull
        and (event.at, event.message_id) == (before.at, before.message_id)
    )
