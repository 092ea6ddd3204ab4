"""Copying a log into another store, and holding the copy against the original."""

from __future__ import annotations

from itertools import zip_longest

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.log import EventLog
from mpreg_mq.events.transfer import OnProgress, Progress, import_log


def copy_log(source: EventLog, target: EventLog, *, on_progress: OnProgress | None = None) -> Progress:
    """Append the events of ``source`` to ``target``, then read both and compare every event; O(events).

    Nothing may append to either meanwhile. Streams, versions and events are the same afterwards; positions are the
    target's own where it has gaps in them.

    Raises:
        EventLogError: a stream is in the target already, the target could not store the events, or the source grew.
        CorruptLogError: the source is damaged, or the copy is not like it; use neither the copy nor the target.
    """
    versions = {stream: source.stream_version(stream) for stream in source.streams()}
    done = import_log(source, target, on_progress=on_progress)
    for stream, version in versions.items():
        if source.stream_version(stream) != version:
            raise EventLogError(
                f"copy: stream {stream!r} of {source.location} grew meanwhile; stop its queues, and copy into a new log"
            )
        compare_stream(source, target, stream)
    return done


def compare_stream(source: EventLog, target: EventLog, stream: str) -> int:
    """How many events of a stream two logs hold alike.

    Raises:
        CorruptLogError: they do not.
    """
    count = 0
    for ours, theirs in zip_longest(source.read_stream(stream), target.read_stream(stream)):
        if ours is None or theirs is None or (ours.version, ours.event) != (theirs.version, theirs.event):
            found = "nothing" if theirs is None else f"version {theirs.version}, {theirs.event!r}"
            expected = "nothing" if ours is None else f"version {ours.version}, {ours.event!r}"
            raise CorruptLogError(
                f"copy: stream {stream!r} of {target.location} has {found[:200]}, expected {expected[:200]}; "
                "remove the copy and start again"
            )
        count += 1
    return count
