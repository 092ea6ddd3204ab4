"""Logs as they are read for debugging: never created, never changed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog, base_version, open_log
from mpreg_mq.events.log import retaining
from mpreg_mq.events.opening import sqlite_url

# Two letters at least: one is a Windows drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")

QUEUE_STREAMS = "queue:"
"""Prefix of the streams that are queues'."""


@attrs.frozen
class StreamInfo:
    """One stream of a log: the version of its last event, and up to which they are compacted (0: all are there)."""

    name: str
    version: int
    base_version: int = 0

    @property
    def events(self) -> int:
        """Events that are there."""
        return self.version - self.base_version


@attrs.frozen
class LogInfo:
    """What a log holds, by its own index. ``size_bytes`` is None where the log is no file.

    Events up to ``base_position`` are compacted; 0 where all are there.
    """

    location: str
    last_position: int
    streams: tuple[StreamInfo, ...]
    size_bytes: int | None
    base_position: int = 0


def queue_names(log: EventLog) -> list[str]:
    """The names of the queues that a log has events of."""
    return [stream.removeprefix(QUEUE_STREAMS) for stream in log.streams() if stream.startswith(QUEUE_STREAMS)]


def open_history(target: str | os.PathLike[str] | EventLog) -> EventLog:
    """Open a log or an export that exists, to read it; who writes it is neither held up nor noticed.

    Raises:
        ConfigurationError: the target is of a scheme that is not known.
        EventLogError: there is no such file, or it is no event log that this release reads.
    """
    path = named_file(target)
    if path is not None:
        if not path.exists():
            raise EventLogError(f"open {path}: there is no such file; give the path of an event log")
        if path.is_file() and path.stat().st_size == 0:
            raise EventLogError(f"open {path}: the file is empty, expected an event log; give another path")
    return open_log(target, read_only=True)


def named_file(target: str | os.PathLike[str] | EventLog) -> Path | None:
    """The file that a target names; None where it names none."""
    if isinstance(target, os.PathLike):
        return Path(target)
    if not isinstance(target, str) or target == "memory:":
        return None
    if target.startswith("sqlite:///"):
        return Path(sqlite_url(target)[0])
    return None if _SCHEME.match(target) else Path(target)


def file_of(log: EventLog) -> Path | None:
    """The file that a log is in; None where it is in none."""
    path = log.location.removeprefix("sqlite:///")
    return None if path == log.location and (path == "memory:" or _SCHEME.match(path)) else Path(path)


def open_to_write(log: EventLog) -> EventLog:
    """Open the log that was opened to be read, for writing as well.

    Raises:
        ConfigurationError: it cannot be written.
        EventLogError: it cannot be opened.
    """
    path = file_of(log)
    return open_log(log.location if path is None else path)


def base_position(log: EventLog) -> int:
    """Position up to which the events of a log are compacted; 0 where all are there."""
    kept = retaining(log)
    return 0 if kept is None else kept.base_position()


def log_info(log: EventLog) -> LogInfo:
    """Streams and sizes; O(streams), because no event is read."""
    streams = tuple(StreamInfo(name, log.stream_version(name), base_version(log, name)) for name in log.streams())
    path = file_of(log)
    files = [] if path is None else [path, path.with_name(path.name + "-wal")]
    size = sum(file.stat().st_size for file in files if file.exists()) if files else None
    return LogInfo(log.location, log.last_position(), streams, size, base_position(log))
