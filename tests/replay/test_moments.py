"""Moments and formats."""

from __future__ import annotations

import pytest

from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import EventLog, MemoryEventLog
from mpreg_mq.replay import Moment, parse_moment
from mpreg_mq.replay.diff import diff_moments
from mpreg_mq.replay.formats import format_seconds, format_time, plural, some
from mpreg_mq.replay.moments import end_of, is_later
from tests.support.incident import START


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1234", Moment(position=1234)),
        ("1777629600.5", Moment(time=START + 0.5)),
        ("2026-05-01T10:00:00Z", Moment(time=START)),
        ("2026-05-01T10:00", Moment(time=START)),
        ("2026-05-01T12:00:00.250+02:00", Moment(time=START + 0.25)),
        ("now", Moment(time=99.0)),
    ],
)
def test_a_moment_is_a_position_or_a_time(text: str, moment: Moment) -> None:
    """Given a text, then it is the position or the time it names; without an offset a time is UTC."""
    assert parse_moment(text, clock=lambda: 99.0) == moment


@pytest.mark.parametrize(
    ("first", "last", "later"),
    [
        (Moment(position=5), Moment(position=1), True),
        (Moment(position=5), Moment(position=5), False),
        (Moment(time=START + 9), Moment(time=START), True),
        (Moment(time=START), Moment(time=START + 9), False),
        (Moment(position=0), Moment(time=START - 1), False),
        (Moment(position=1), Moment(time=START - 1), True),
        (Moment(position=1), Moment(time=START + 1e9), False),
        (Moment(time=START + 1e9), Moment(position=1), True),
        (Moment(time=START - 1), Moment(position=1), False),
    ],
)
def test_one_of_two_moments_is_later(log: EventLog, first: Moment, last: Moment, later: bool) -> None:
    """Given two moments, as positions or times, then the later one has events that the other has not, and there is no
    difference from it to the other."""
    assert is_later(first, last, log) is later
    if later:
        with pytest.raises(InvalidOptionError, match="give the earlier moment first"):
            diff_moments(log, first, last)
    else:
        assert diff_moments(log, first, last).events is not None


def test_time_before_the_end_counts_from_the_last_event(log: EventLog) -> None:
    """Given -30s, then it is half a minute before the log's last event."""
    assert parse_moment("-30s", log) == Moment(time=end_of(log) - 30)
    assert parse_moment("-1.5m", log) == Moment(time=end_of(log) - 90)
    assert end_of(MemoryEventLog()) == 0.0


@pytest.mark.parametrize("text", ["", "yesterday", "-5x", "nan", "inf", "-1.5", "2026-13-01", "-5m"])
def test_what_names_no_moment_is_refused_with_what_would(text: str) -> None:
    """Given a text that is no moment (or counts from the end without a log), then the error shows what is one."""
    with pytest.raises(InvalidOptionError, match="expected a position"):
        parse_moment(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.25, "250 ms"),
        (1.0, "1 s"),
        (41.26, "41.3 s"),
        (60.0, "1 m"),
        (125.0, "2 m 5 s"),
        (3600.0, "1 h"),
        (90061.0, "1 d 1 h"),
        (-2.0, "-2 s"),
    ],
)
def test_spans_are_told_in_two_units(seconds: float, text: str) -> None:
    """Given seconds, then they read as people say them."""
    assert format_seconds(seconds) == text


def test_other_formats() -> None:
    """Times are ISO in UTC, also where no date has them; counts have their nouns; lists are cut."""
    assert format_time(START + 0.25) == "2026-05-01T10:00:00.250Z"
    assert format_time(1e18) == "1000000000000000000.000"
    assert (plural(1, "attempt"), plural(1204, "attempt")) == ("1 attempt", "1,204 attempts")
    assert some([]) == "nobody"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"
