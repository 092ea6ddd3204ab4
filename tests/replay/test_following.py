"""The end of a log, what is appended to it, and its queues as they change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import InvalidOptionError, InvalidTopicError
from mpreg_mq.events import Append, EventLog, MemoryEventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.replay import EventFilter, Moment, ReadingStoppedError, read
from mpreg_mq.replay.following import Follower, follow, tail
from mpreg_mq.replay.statistics import all_figures
from tests.support.history import History

EVERYTHING = EventFilter()


def positions(log: EventLog, wanted: EventFilter) -> list[int]:
    return [record.position for record in wanted.select(read(log))]


def test_the_last_events_oldest_first(log: EventLog) -> None:
    """Given a number, then so many of the last events; more than there are gives all."""
    assert [record.position for record in tail(log, 3, EVERYTHING)] == [122, 123, 124]
    assert len(tail(log, 1000, EVERYTHING)) == 124
    assert [r.position for r in tail(log, 2, EventFilter(type="MessageDelivered"))] == [113, 117]
    assert tail(MemoryEventLog(), 5, EVERYTHING) == []


def test_following_gives_what_is_appended_and_waits_in_between() -> None:
    """Given appends while somebody follows, then each event comes once, in order, and only those that are wanted."""
    log = MemoryEventLog()
    events = History().joined("a").sent("1").delivered("1", "a").events
    appended = iter(range(len(events)))

    class OverError(Exception):
        pass

    def wait(seconds: float) -> None:
        number = next(appended, None)
        if number is None:
            raise OverError
        log.append([Append("queue:q", number, [events[number]])])

    seen: list[str] = []
    with contextlib.suppress(OverError):
        seen += (type(record.event).__name__ for record in follow(log, 0, EventFilter(queue="q"), wait=wait))
    assert seen == ["QueueCreated", "SubscriberJoined", "MessageEnqueued", "MessageDelivered"]


def test_the_last_events_end_where_following_begins() -> None:
    """Given events that are appended while the last ones are read, then each is shown once, in order."""
    log = MemoryEventLog()
    events = History().joined("a").sent("1").sent("2").sent("3").events

    class Busy(MemoryEventLog):
        def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
            version = self.last_position()
            self.append([Append("queue:q", version, events[version : version + 2])])
            return super().read_all(after_position)

    class OverError(Exception):
        pass

    def wait(seconds: float) -> None:
        raise OverError

    log = Busy()
    log.append([Append("queue:q", 0, events[:1])])
    last = log.last_position()
    seen = [record.position for record in tail(log, 10, EVERYTHING, last=last)]
    with contextlib.suppress(OverError):
        seen += (record.position for record in follow(log, last, EVERYTHING, wait=wait))
    assert seen == [1, 2, 3, 4, 5]


def test_what_was_compacted_before_it_was_read_is_told() -> None:
    """Given events that come and are compacted before who follows looks, or while it reads, then it is told which."""
    log = MemoryEventLog()
    history = History().joined("a")

    class OverError(Exception):
        pass

    def grow_and_compact(keep: int) -> None:
        version = log.last_position()
        for number in range(10):
            history.sent(f"{version + number}-a")
        log.append([Append("queue:q", version, history.events[version:])])
        for _ in Compactor(log, RetentionPolicy(keep_events=keep, least_events=1), lambda: 0.0).steps():
            pass

    waits = iter([4, 3])

    def wait(seconds: float) -> None:
        keep = next(waits, None)
        if keep is None:
            raise OverError
        grow_and_compact(keep)

    seen: list[int] = []
    missed: list[tuple[int, int]] = []
    with contextlib.suppress(OverError):
        for record in follow(log, 0, EVERYTHING, wait=wait, missed=lambda first, last: missed.append((first, last))):
            seen.append(record.position)
            if record.position == 10:
                grow_and_compact(2)
    assert missed == [(1, 8), (11, 20), (23, 29)]
    assert seen == [9, 10, 21, 22, 30, 31, 32]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (EventFilter(queue="orders", type="DuplicateRejected"), [121]),
        (EventFilter(message="11-"), [*range(106, 116)]),
        (EventFilter(topic="order.eu.*"), [123]),
        (
            EventFilter(topic="order.*", since=Moment(position=113), until=Moment(position=117)),
            [113, 114, 115, 116, 117],
        ),
        (EventFilter(since=Moment(time=1_777_629_940.0)), [124]),
    ],
)
def test_filters(log: EventLog, wanted: EventFilter, found: list[int]) -> None:
    """Given a filter, then exactly the events that it names; a topic brings the message's later events too."""
    selected = positions(log, wanted)
    if wanted.message is not None:
        assert set(found) <= set(selected)
    else:
        assert selected == found


def test_a_filter_that_can_find_nothing_is_refused() -> None:
    """Given an unknown type or a malformed pattern, then that is an error and not an empty result."""
    with pytest.raises(InvalidOptionError, match="expected one of AudienceFixed"):
        EventFilter(type="Nope")
    with pytest.raises(InvalidTopicError):
        EventFilter(topic="a..b")


def test_figures_and_rates_of_a_log_that_grows() -> None:
    """Given a look before and one after, then the figures are those of now and the rates those of in between."""
    log = MemoryEventLog()
    history = History(circuit_breaker_failure_threshold=1).joined("a").sent("1").sent("2")
    log.append([Append("queue:q", 0, history.events)])
    follower = Follower(log)
    assert follower.catch_up() == 4
    first = all_figures(follower.states, history.now + 5)
    assert (first["q"].pending, first["q"].oldest_pending_seconds, first["q"].sent_per_second) == (2, 5.0, 0.0)
    more = [
        *History().at(1001.0).sent("3").delivered("1", "a").acknowledged("1", "a").events[1:],
        *History().at(1001.0).delivered("2", "a").failed("2", "a").events[1:],
        e.CircuitOpened(1001.0, "a", 1, 1031.0),
        e.QueuePaused(1001.0),
    ]
    log.append([Append("queue:q", 4, more)])
    assert follower.catch_up() == len(more)
    assert follower.catch_up() == 0
    now = all_figures(follower.states, 1002.0, first, 2.0)["q"]
    assert (now.sent_per_second, now.acknowledged_per_second, now.failed_attempts_per_second) == (0.5, 0.5, 0.5)
    assert (now.open_circuits, now.paused, now.subscribers) == (1, True, 1)


def test_a_follower_stops_at_an_event_that_cannot_follow() -> None:
    """Given a log with a contradiction, then the follower says how far it came."""
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, [*History().events, e.MessageExpired(1001.0, "nobody")])])
    log.append([Append("routes:topics", 0, [e.TopicRouteRemoved(1.0, "#", "q")])])
    with pytest.raises(ReadingStoppedError, match="readable up to position 1 of 3"):
        Follower(log).catch_up()
