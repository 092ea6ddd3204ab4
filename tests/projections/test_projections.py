"""Each projection alone: it rebuilds from events, checks itself, and refuses what contradicts them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, QueueType, RejectionReason
from mpreg_mq.projections import (
    DeadLetters,
    DeduplicationWindow,
    MessageHistories,
    Messages,
    QueueState,
    Statistics,
    Subscribers,
)
from mpreg_mq.projections.base import Projection
from mpreg_mq.projections.deadlines import DeadlineKind, Deadlines
from mpreg_mq.projections.lanes import Lanes
from tests.support.given import by_handlers

CREATED = e.QueueCreated(1.0, "q", QueueConfiguration("q", deduplication_window_seconds=10))


def enqueued(message_id: str, at: float = 1.0, **fields: Any) -> e.MessageEnqueued:
    return e.MessageEnqueued(at, message_id, "t", b"x", **fields)


def joined(subscriber_id: str, subscription_id: str = "", pattern: str = "#") -> e.SubscriberJoined:
    return e.SubscriberJoined(1.0, subscriber_id, subscription_id or f"{subscriber_id}1", pattern, 10)


def delivered(message_id: str, subscriber_id: str, at: float = 2.0, attempt: int = 1) -> e.MessageDelivered:
    return e.MessageDelivered(at, message_id, subscriber_id, f"{subscriber_id}1", attempt, at + 30)


STORY: list[e.Event] = [
    CREATED,
    joined("s"),
    enqueued("m1", deduplication_key="k"),
    delivered("m1", "s"),
    e.MessageAcknowledged(5.0, "m1", "s", True),
    enqueued("m2", 5.0),
    delivered("m2", "s", 6.0),
    e.DeliveryFailed(7.0, "m2", "s", 1, "boom"),
    e.MessageDeadLettered(7.0, "m2", "used up", "boom", 1, "s"),
    enqueued("m3", 7.0, guarantee=DeliveryGuarantee.BROADCAST),
    e.AudienceFixed(8.0, "m3", ("s",)),
    e.DuplicateRejected(8.0, "t", "k", "m1"),
]


@pytest.mark.parametrize("kind", [e.MessageEnqueued, e.MessageDelivered, e.MessageAcknowledged])
def test_i4_a_state_asks_every_projection_that_handles_an_event(
    kind: type[e.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an event of a type that a state has a short way for, then those take it in that say they handle it."""
    state = QueueState.replay(STORY)
    handlers = [(one, one.handler(kind)) for one in state.projections]
    expected = [(type(one).__name__, one.HANDLED[kind]) for one, handler in handlers if handler is not None]
    asked: list[tuple[str, str]] = []
    for projection in state.projections:
        for method in set(projection.HANDLED.values()):
            called = (type(projection).__name__, method)
            monkeypatch.setattr(type(projection), method, lambda self, event, called=called: asked.append(called))
    state.apply(next(event for event in STORY if type(event) is kind))
    assert asked == expected


def test_i4_each_projection_rebuilds_alone_and_in_one_state() -> None:
    """Given a story, then each projection folds it alone to what the whole state holds."""
    state = QueueState.replay(STORY)
    state.check()
    for kind in (Subscribers, Statistics, DeadLetters, DeduplicationWindow, Messages, MessageHistories):
        kind.replay(STORY).check()
    assert Statistics.replay(STORY).counts == state.statistics.counts
    assert list(DeadLetters.replay(STORY)) == list(state.dead_letters)
    assert DeduplicationWindow.replay(STORY).keys() == state.deduplication.keys()
    assert [message.id for message in Messages.replay(STORY)] == ["m3"]
    assert Statistics.replay(STORY).average_processing_seconds() == 3.0


def test_i4_a_prefix_and_the_rest_fold_to_the_same() -> None:
    """Given any point of a story, then folding up to it and then the rest gives the same state."""
    whole = QueueState.replay(STORY).describe()
    for cut in range(1, len(STORY)):
        state = QueueState.replay(STORY[:cut])
        for event in STORY[cut:]:
            state.apply(event)
        assert state.describe() == whole


@pytest.mark.parametrize(
    "impossible",
    [
        enqueued("m3", 9.0),
        delivered("m3", "nobody", 9.0),
        delivered("unknown", "s", 9.0),
        joined("s"),
        e.SubscriberLeft(9.0, "s", "unknown"),
        e.AudienceFixed(9.0, "m3", ("s",)),
        e.AudienceMemberLeft(9.0, "m3", "stranger"),
        e.MessageAcknowledged(9.0, "m3", "stranger"),
        e.MessageAcknowledged(9.0, "m1", "s", True),
        e.DeliveryFailed(9.0, "m3", "s", 1, "boom"),
        e.LeaseExpired(9.0, "m3", "stranger", 1, "late"),
        e.LeaseExtended(9.0, "m3", "s", 99.0),
        e.MessageRequeued(9.0, "m3", 10.0, "stranger"),
        e.MessageCompleted(9.0, "m1"),
        e.MessageExpired(9.0, "unknown"),
        e.MessagesPurged(9.0, ("unknown",)),
        e.MessageDeadLettered(9.0, "m2", "again", None, 1, "s"),
        e.DeadLetterRedriven(9.0, "m3", "m9", "q"),
        e.DeadLettersPurged(9.0, ("unknown",)),
        e.CircuitOpened(9.0, "nobody", 3, 10.0),
        e.QuorumMissed(9.0, "unknown", 1, 2, 10.0),
    ],
    ids=lambda event: f"{type(event).__name__}-{getattr(event, 'message_id', '')}",
)
def test_an_event_that_contradicts_the_state_raises(impossible: e.Event) -> None:
    """Given a story, then an event that cannot follow it is an error, never skipped."""
    with pytest.raises(ProjectionError, match=type(impossible).__name__):
        QueueState.replay([*STORY, impossible])


@pytest.mark.parametrize(
    "impossible",
    [
        [enqueued("m"), delivered("m", "s"), delivered("m", "s", 3.0, 2)],
        [enqueued("m"), delivered("m", "s"), CREATED, e.MessageAcknowledged(5.0, "m", "s", True)],
        [enqueued("m"), delivered("m", "nobody"), e.MessageAcknowledged(5.0, "m", "nobody", True)],
        [delivered("m", "s"), e.MessageAcknowledged(5.0, "m", "s", True)],
        [enqueued("m"), delivered("m", "s"), e.MessageAcknowledged(5.0, "m", "t", True)],
    ],
    ids=[
        "delivered while leased",
        "acknowledged after a second beginning",
        "delivered to nobody",
        "delivered but not sent",
        "acknowledged by another",
    ],
)
def test_contradictions_about_plain_messages_raise_as_the_handlers_do(impossible: list[e.Event]) -> None:
    """Given a contradiction about a message with nothing special, then the short ways, one event after another and
    many at a time, raise what the handlers do."""
    events = [CREATED, joined("s"), *impossible]
    with pytest.raises(ProjectionError, match="disagree") as at_once:
        QueueState.replay(events)
    with pytest.raises(ProjectionError) as one_by_one:
        Projection.apply_all(QueueState(), events)
    with pytest.raises(ProjectionError) as long:
        by_handlers(events)
    assert str(at_once.value) == str(one_by_one.value) == str(long.value)


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        (Messages, [enqueued("m")]),
        (Messages, [CREATED, enqueued("m"), delivered("m", "s"), delivered("m", "t")]),
        (Messages, [CREATED, enqueued("m"), e.AudienceFixed(1.0, "m", ("s",)), delivered("m", "t")]),
        (DeadLetters, [e.MessageCompleted(1.0, "m")]),
        (DeadLetters, [e.MessageDeadLettered(1.0, "m", "r", None, 1, None)]),
        (Subscribers, [e.CircuitClosed(1.0, "s")]),
        (Statistics, [e.MessageAcknowledged(1.0, "m", "s")]),
    ],
)
def test_each_projection_refuses_alone_too(kind: type[Any], events: list[e.Event]) -> None:
    """Given events that cannot be a stream, then the projection that knows so raises."""
    with pytest.raises(ProjectionError):
        kind.replay(events)


def test_an_audience_member_acknowledges_once_and_is_not_requeued_while_leased() -> None:
    """Given a member's copy, then a second acknowledgment and a return of a leased copy are contradictions."""
    leased = [*STORY, joined("u"), e.AudienceFixed(9.0, "m3", ("u",)), delivered("m3", "s", 9.0)]
    with pytest.raises(ProjectionError, match="leased"):
        QueueState.replay([*leased, e.MessageRequeued(9.0, "m3", 10.0, "s")])
    acknowledged = e.MessageAcknowledged(9.0, "m3", "s")
    with pytest.raises(ProjectionError, match="already"):
        QueueState.replay([*leased, acknowledged, acknowledged])


def test_the_sizes_of_a_queue_are_what_it_holds() -> None:
    """Given a story with a waiting, a leased and a dead message, then the report and the lists say so."""
    state = QueueState.replay([*STORY, enqueued("m4", 9.0), delivered("m4", "s", 9.0)])
    assert [message.id for message in state.messages.leased()] == ["m4"]
    assert [message.id for message in state.messages.pending()] == ["m3"]
    report = state.report(9.0)
    assert (report.current_queue_size, report.current_in_flight_count, report.current_dead_letter_count) == (1, 1, 1)
    assert (report.messages_rejected, report.messages_duplicate, report.current_deduplication_key_count) == (1, 1, 1)
    state.apply(e.MessageRejected(9.0, "t", RejectionReason.CAPACITY, "full"))
    assert state.report(9.0).messages_rejected == 2
    assert report.messages_rejected == 1


def test_a_state_needs_its_beginning_and_known_events() -> None:
    """Given no QueueCreated, or something that is no event, then the error says so."""

    class Unheard(e.Event, frozen=True):
        """Not one of the events."""

    with pytest.raises(ProjectionError, match="does not begin with QueueCreated"):
        _ = QueueState().configuration
    with pytest.raises(ProjectionError, match="Unheard"):
        QueueState.replay([CREATED, Unheard(1.0)])


@pytest.mark.parametrize("delivered_to", [(), ("s",), ("r", "s")])
@pytest.mark.parametrize("failed", [(), ("x",)])
@pytest.mark.parametrize("key", [None, "k"])
def test_g1_what_was_fired_folds_by_the_shortest_way_as_by_the_common_one(
    delivered_to: tuple[str, ...], failed: tuple[str, ...], key: str | None
) -> None:
    fired = e.FireAndForgetSent(2.0, "f1-r", "t", delivered_to, failed, key)
    common, shortest = QueueState.replay([CREATED]), QueueState.replay([CREATED])
    common.apply(fired)
    shortest.apply_fired(fired)
    assert shortest.dump() == common.dump()
    assert shortest.statistics.counts == common.statistics.counts


def test_histories_hold_every_event_of_a_message_in_order() -> None:
    """Given a story with a purge, then each message has its events, and an unknown one has none."""
    histories = MessageHistories.replay([*STORY, e.DeadLettersPurged(9.0, ("m2",))])
    histories.check()
    assert [type(event).__name__ for event in histories.of("m2")] == [
        "MessageEnqueued",
        "MessageDelivered",
        "DeliveryFailed",
        "MessageDeadLettered",
        "DeadLettersPurged",
    ]
    assert histories.ids() == ["m1", "m2", "m3"]
    assert len(histories) == 3
    assert histories.of("unknown") == []


def test_a_redriven_key_is_held_from_the_latest_acceptance() -> None:
    """Given the same key accepted twice, then the later acceptance's window counts."""
    window = DeduplicationWindow.replay(
        [CREATED, enqueued("m1", 1.0, deduplication_key="k"), enqueued("m2", 5.0, deduplication_key="k")]
    )
    window.check()
    assert window.holder("k", 12.0) == "m2"
    assert window.holder("k", 15.0) is None
    assert len(window) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 8)), max_size=60))
def test_u1_the_window_agrees_with_a_list_of_all_sends(sends: list[tuple[int, float]]) -> None:
    """Given any sends, then who holds a key is the latest accepted send of it within the window."""
    window = DeduplicationWindow.replay([CREATED])
    accepted: list[tuple[str, float, str]] = []
    now = 1.0
    for number, (key_number, pause) in enumerate(sends):
        now += pause
        key = str(key_number)
        holders = [holder for held, at, holder in accepted if held == key and now < at + 10]
        assert window.holder(key, now) == (holders[-1] if holders else None)
        assert window.live_count(now) == len({held for held, at, _ in accepted if now < at + 10})
        if not holders:
            window.apply(enqueued(f"m{number}", now, deduplication_key=key))
            accepted.append((key, now, f"m{number}"))
        window.check()


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100))))
def test_deadlines_come_in_order_and_once(steps: list[tuple[bool, float]]) -> None:
    """Given additions and removals, then the first is the least of those registered, and the rest are in order."""
    deadlines = Deadlines()
    registered: list[Any] = []
    for remove, when in steps:
        if remove and registered:
            entry = registered.pop(len(registered) // 2)
            deadlines.remove(entry)
            deadlines.remove(entry)
        else:
            registered.append(deadlines.add(when, DeadlineKind.DUE, "target"))
        deadlines.check()
        first = deadlines.first()
        assert (first.when if first else None) == min((entry.when for entry in registered), default=None)
        assert [entry.when for entry in deadlines] == sorted(entry.when for entry in registered)
        assert len(deadlines) == len(registered)


def test_a_deadline_is_removed_once_and_the_others_stay_in_order() -> None:
    """Given deadlines registered out of order, when one is removed twice, then it alone is gone."""
    deadlines = Deadlines()
    late, early, middle = (deadlines.add(when, DeadlineKind.DUE, "target") for when in (3.0, 1.0, 2.0))
    assert list(deadlines) == [early, middle, late]
    for _ in range(2):
        deadlines.remove(early)
        assert list(deadlines) == [middle, late]
        assert len(deadlines) == 2
        deadlines.check()
    assert deadlines.first() is middle


def test_removed_deadlines_do_not_pile_up() -> None:
    """Given many deadlines that are removed before they come, then the structure stays small."""
    deadlines = Deadlines()
    late = deadlines.add(1e9, DeadlineKind.TTL, "late")
    for number in range(10_000):
        deadlines.remove(deadlines.add(float(number), DeadlineKind.LEASE, "lease"))
        deadlines.check() if number % 1000 == 0 else None
    assert len(deadlines._heap) < 600
    assert deadlines.first() is late


def test_lanes_forget_overtaken_heads_and_old_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given ever higher priorities and ever new topics, then the index does not grow with them."""
    import mpreg_mq.projections.lanes as module

    monkeypatch.setattr(module, "_MAX_CACHED_TOPICS", 10)
    monkeypatch.setattr(module, "_MAX_STALE_HEADS", 5)
    state = QueueState.replay(
        [e.QueueCreated(1.0, "q", QueueConfiguration("q", QueueType.PRIORITY)), joined("s"), joined("o", pattern="o")]
    )
    lanes: Lanes = state.messages.lanes
    assert lanes.next() is None
    for number in range(50):
        state.apply(e.MessageEnqueued(2.0, f"m{number}", f"t{number}", b"", options=MessageOptions(priority=number)))
    state.check()
    assert len(lanes) == 50
    assert len(lanes._heads) <= 10
    assert len(lanes.lane_of_topic) <= 10
    found = lanes.next()
    assert found is not None
    assert found[0].message.id == "m49"


def test_messages_that_leave_a_lane_from_its_middle_do_not_pile_up() -> None:
    """Given a first message that stays and many behind it that leave, then the lane stays small and in order."""
    state = QueueState.replay([e.QueueCreated(1.0, "q", QueueConfiguration("q", QueueType.PRIORITY)), joined("s")])
    state.apply(e.MessageEnqueued(2.0, "first", "t", b"", options=MessageOptions(priority=9)))
    (slot,) = state.messages.lanes.ready_for("s")
    lane = slot.lane
    assert lane is not None
    for number in range(2_000):
        topic = f"t{number}"
        state.apply(e.MessageEnqueued(2.0, str(number), topic, b"", options=MessageOptions(priority=number % 3)))
        state.apply(e.MessageDropped(2.0, str(number)))
        state.check() if number % 200 == 0 else None
    assert len(lane.row) + len(lane.heap) < 300
    assert len(lane.topics) < 300
    assert [slot.message.id for slot in state.messages.lanes.ready_for("s")] == ["first"]


def test_dead_letters_are_the_same_alone_and_inside_a_queue() -> None:
    """Given every way in which a message ends, then the projection alone finds the dead ones that the queue has."""
    events = [
        e.QueueCreated(1.0, "q", QueueConfiguration("q")),
        joined("s"),
        *(enqueued(name) for name in ("acknowledged", "broadcast", "dead", "failed", "purged")),
        *(e.MessageDelivered(2.0, name, "s", "s", 1, 9.0) for name in ("acknowledged", "broadcast", "dead", "failed")),
        e.MessageAcknowledged(3.0, "acknowledged", "s", True),
        e.MessageAcknowledged(3.0, "broadcast", "s"),
        e.MessageCompleted(3.0, "broadcast"),
        e.DeliveryFailed(3.0, "dead", "s", 1, "boom"),
        e.MessageDeadLettered(3.0, "dead", "r", "boom", 1, "s"),
        e.DeliveryFailed(3.0, "failed", "s", 1, "boom"),
        e.MessageFailed(3.0, "failed", "r", "boom", 1, "s"),
        e.MessagesPurged(3.0, ("purged",)),
    ]
    alone, queue = DeadLetters.replay(events), QueueState.replay(events)
    assert list(alone) == list(queue.dead_letters)
    assert alone.ids() == ["dead"]
    alone.check()


def test_dead_letters_refuse_the_end_of_what_was_never_accepted() -> None:
    """Given no acceptance, then a dead letter contradicts the log, alone and inside a queue."""
    dead = e.MessageDeadLettered(3.0, "ghost", "r", "boom", 1, "s")
    for projection in (DeadLetters(), QueueState.replay([e.QueueCreated(1.0, "q", QueueConfiguration("q"))])):
        with pytest.raises(ProjectionError, match="ghost"):
            projection.apply(dead)


def test_audiences_are_remembered_only_while_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given topics that were asked for, when subscriptions change, then the answer does; many topics take no room."""
    monkeypatch.setattr("mpreg_mq.projections.subscribers._MAX_CACHED_TOPICS", 3)
    subscribers = Subscribers.replay([joined("a", pattern="x")])
    assert (subscribers.audience("x"), subscribers.audience("y")) == (("a",), ())
    subscribers.apply(joined("b", pattern="#"))
    assert (subscribers.audience("x"), subscribers.audience("y")) == (("a", "b"), ("b",))
    subscribers.apply(e.SubscriberLeft(2.0, "b", "b1"))
    for number in range(10):
        assert subscribers.audience(f"t{number}") == ()
        subscribers.check()
    assert subscribers.audience("x") == ("a",)


def test_the_oldest_subscription_that_matches_gets_the_topic() -> None:
    """Given a subscriber with several patterns, then a topic is for the oldest that matches, of all or of some; where
    none matches, for the oldest of all, and for none of some."""
    subscribers = Subscribers.replay(
        [joined("a", name, pattern) for name, pattern in (("1", "x"), ("2", "#"), ("3", "y"))]
    )
    subscriber = subscribers.get("a")
    assert subscriber is not None
    assert [subscribers.subscription_for(subscriber, topic) for topic in "xyz"] == ["1", "2", "2"]
    assert [subscribers.subscription_among(subscriber, topic, {"1", "3"}) for topic in "xyz"] == ["1", "3", None]
    subscribers.apply(e.SubscriberLeft(2.0, "a", "2", False))
    assert [subscribers.subscription_for(subscriber, topic) for topic in "xyz"] == ["1", "3", "1"]
    assert len(subscribers._audiences) <= 3


@pytest.mark.parametrize("enabled", [True, False])
def test_a_replay_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    """Given a collector that is on or off, then it rests during a replay, even a failed one, and is as it was after."""
    resting: list[bool] = []

    def events() -> Iterator[e.Event]:
        resting.append(not gc.isenabled())
        yield CREATED
        raise OSError("the log cannot be read")

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(OSError, match="cannot be read"):
            QueueState.replay(events())
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert resting == [True]
