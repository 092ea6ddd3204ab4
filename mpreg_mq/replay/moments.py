"""Moments of a log: a position, or a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.replay.formats import format_time

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BEFORE_END = re.compile(r"-(\d+(?:\.\d+)?)([smhd])\Z")
_EXPECTED = (
    "a position (1234), a time (2026-05-01T10:15:30.5Z, or seconds since the epoch with a decimal point), "
    "'now', or time before the last event (-30s, -5m, -2h, -1d)"
)


@attrs.frozen
class Moment:
    """After the event at ``position``, or at ``time`` (seconds since the epoch); exactly one of them is given.

    What happened at the moment itself is part of it.
    """

    position: int | None = None
    time: float | None = None

    def includes(self, record: RecordedEvent) -> bool:
        """Whether the event had happened by then."""
        if self.position is not None:
            return record.position <= self.position
        assert self.time is not None
        return record.event.at <= self.time

    def __str__(self) -> str:
        return f"position {self.position}" if self.time is None else format_time(self.time)


def moment_problem(value: object) -> str | None:
    """Check for a moment, or None; a bare position or the text of a moment is none yet."""
    if value is None or isinstance(value, Moment):
        return None
    return f"got {describe(value)}, expected a Moment, such as Moment(position=1234) or parse_moment('-5m', log)"


def is_later(first: Moment, last: Moment, log: EventLog) -> bool:
    """Whether the first of two moments is after the other, in this log."""
    if first.time is not None and last.time is not None:
        return first.time > last.time
    if first.position is not None and last.position is not None:
        return first.position > last.position
    # Of a position and a time: what the log has at that place tells which is later.
    place = first.position if first.position is not None else last.position
    assert place is not None
    around = islice(log.read_all(max(0, place - 1)), 2)
    return any(first.includes(record) and not last.includes(record) for record in around)


def parse_moment(text: str, log: EventLog | None = None, clock: Callable[[], float] = time.time) -> Moment:
    """The moment that a text names; a time without an offset is UTC.

    Args:
        text: see the message of the error.
        log: what ``-30s`` counts back from the end of.
        clock: what ``now`` is.

    Raises:
        InvalidOptionError: it names none.
    """
    if re.fullmatch(r"\d+", text):
        return Moment(position=int(text))
    if text == "now":
        return Moment(time=clock())
    before = _BEFORE_END.match(text)
    if before is not None and log is not None:
        return Moment(time=end_of(log) - float(before[1]) * _UNITS[before[2]])
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso_seconds(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidOptionError(f"moment: got {describe(text)}, expected {_EXPECTED}")
    return Moment(time=seconds)


def _iso_seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidOptionError(f"moment: got {describe(text)}, expected {_EXPECTED}") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def end_of(log: EventLog) -> float:
    """Time of the log's last event; 0.0 where it has none."""
    last = 0.0
    for record in log.read_all(log.last_position() - 1):
        last = record.event.at
    return last
