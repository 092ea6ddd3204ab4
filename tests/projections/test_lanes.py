"""Which ready message goes next, and to whom: the dispatch index against a list of everything (G2, G5, O1, O2, C2)."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, QueueType
from mpreg_mq.projections import QueueState
from mpreg_mq.topics import matches

AT_LEAST_ONCE, BROADCAST = DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST
NAMES = ["a", "b", "c"]
PULLER = "p"
TOPICS = ["x", "x.y", "z"]
PATTERNS = ["#", "x", "x.#", "z"]


class NaiveQueue:
    """The rules in the plainest form: lists that are searched from the start each time."""

    def __init__(self) -> None:
        self.state = QueueState()
        self.apply(e.QueueCreated(1.0, "q", QueueConfiguration("q", QueueType.PRIORITY, max_retries=1000)))
        self.numbers = count(1)
        self.clock = count(1)
        self.waiting: list[tuple[int, int, str, str | None]] = []
        """(minus priority, number, topic, member whose copy it is) of everything ready."""
        self.leases: list[tuple[tuple[int, int, str, str | None], str]] = []
        self.patterns: dict[str, dict[str, str]] = {name: {} for name in [*NAMES, PULLER]}
        self.last_used = dict.fromkeys(self.patterns, 0)
        self.attempts: dict[tuple[int, str | None], int] = {}
        self.broadcasts: set[int] = set()

    def apply(self, event: e.Event) -> None:
        self.state.apply(event)

    def matching(self, topic: str) -> list[str]:
        return [
            name
            for name, patterns in sorted(self.patterns.items())
            if any(matches(pattern, topic) for pattern in patterns.values())
        ]

    def held(self, name: str) -> int:
        return sum(holder == name for _, holder in self.leases)

    def takers(self, entry: tuple[int, int, str, str | None]) -> list[str]:
        """Push subscribers that may have it now, the one to choose first."""
        _, _, topic, member = entry
        names = self.matching(topic) if member is None else [member]
        free = [name for name in names if name != PULLER and self.patterns[name] and self.held(name) < 2]
        return sorted(free, key=lambda name: (self.held(name), self.last_used[name], name))

    # --- what can happen ----------------------------------------------------------------------------------

    def send(self, topic: str, priority: int, broadcast: bool) -> None:
        number = next(self.numbers)
        guarantee = BROADCAST if broadcast else AT_LEAST_ONCE
        self.apply(e.MessageEnqueued(1.0, str(number), topic, b"", guarantee, MessageOptions(priority=priority)))
        self.waiting.append((-priority, number, topic, None))
        if broadcast:
            self.broadcasts.add(number)

    def join(self, name: str, pattern: str) -> None:
        subscription = f"{name}{next(self.numbers)}"
        self.apply(e.SubscriberJoined(1.0, name, subscription, pattern, 2, name == PULLER))
        self.patterns[name][subscription] = pattern

    def leave(self, name: str) -> None:
        """The oldest subscription of this name ends with its process, so that audiences stay."""
        if self.patterns[name]:
            subscription = next(iter(self.patterns[name]))
            self.apply(e.SubscriberLeft(1.0, name, subscription, False))
            del self.patterns[name][subscription]
            self.forget(name)

    def forget(self, name: str) -> None:
        """Who has neither subscriptions nor leases is nobody; it comes back as a newcomer."""
        if not self.patterns[name] and not self.held(name):
            self.last_used[name] = 0

    def deliver(self) -> None:
        """The index and the list agree on what goes next, and it goes."""
        ready = sorted(entry for entry in ((*entry[:3], entry[3] or "") for entry in self.waiting))
        able = [entry for entry in ((*entry[:3], entry[3] or None) for entry in ready) if self.takers(entry)]
        assert self.state.messages.lanes.may_deliver or not able
        found = self.state.messages.lanes.next()
        if not able:
            assert found is None
            return
        assert found is not None
        slot, subscriber = found
        first = [entry for entry in able if entry[:2] == able[0][:2]]
        (entry,) = [entry for entry in first if entry[3] == slot.subscriber_id]
        assert slot.message.id == str(entry[1])
        assert subscriber.id == self.takers(entry)[0]
        if entry[1] in self.broadcasts and entry[3] is None:
            audience = self.matching(entry[2])
            self.apply(e.AudienceFixed(1.0, slot.message.id, tuple(audience)))
            self.waiting.remove(entry)
            self.waiting += [(*entry[:3], member) for member in audience]
            return
        attempts = self.attempts[entry[1], entry[3]] = self.attempts.get((entry[1], entry[3]), 0) + 1
        self.apply(e.MessageDelivered(1.0, slot.message.id, subscriber.id, "any", attempts, 99.0))
        self.last_used[subscriber.id] = next(self.clock)
        self.waiting.remove(entry)
        self.leases.append((entry, subscriber.id))

    def settle(self, index: int, succeeds: bool) -> None:
        if not self.leases:
            return
        entry, name = self.leases.pop(index % len(self.leases))
        _, number, _, member = entry
        self.forget(name)
        if succeeds:
            self.apply(e.MessageAcknowledged(1.0, str(number), name, member is None))
            return
        attempt = self.attempts[number, member]
        self.apply(e.DeliveryFailed(1.0, str(number), name, attempt, "boom"))
        self.apply(e.MessageRequeued(1.0, str(number), 1.0, member))
        self.waiting.append(entry)

    def look(self) -> None:
        """What the puller would be given is what matches, in order."""
        matching = [
            entry
            for entry in self.waiting
            if entry[3] == PULLER or (entry[3] is None and PULLER in self.matching(entry[2]))
        ]
        expected = [str(number) for _, number, _, _ in sorted(matching, key=lambda entry: entry[:2])]
        assert [slot.message.id for slot in self.state.messages.lanes.ready_for(PULLER)] == expected


SEND = st.tuples(st.just("send"), st.sampled_from(TOPICS), st.integers(0, 2), st.sampled_from([False, False, True]))
DELIVER = st.tuples(st.just("deliver"))
SETTLE = st.tuples(st.just("settle"), st.integers(0, 9), st.booleans())
STEPS = st.one_of(
    SEND,
    SEND,
    SEND,
    DELIVER,
    DELIVER,
    DELIVER,
    SETTLE,
    SETTLE,
    st.tuples(st.just("join"), st.sampled_from([*NAMES, PULLER]), st.sampled_from(PATTERNS)),
    st.tuples(st.just("leave"), st.sampled_from([*NAMES, PULLER])),
    st.tuples(st.just("look")),
)


@given(
    st.lists(st.tuples(st.sampled_from([*NAMES, PULLER]), st.sampled_from(PATTERNS)), min_size=1, max_size=4),
    st.lists(STEPS, min_size=20, max_size=80),
    st.sampled_from([0, 1000]),
)
@settings(deadline=None)
def test_the_index_agrees_with_a_list_of_everything(
    subscriptions: list[tuple[str, str]], steps: list[tuple[Any, ...]], most_idle: int
) -> None:
    """For all stories: the first message in queue order that has a taker goes next, to the least busy of them, whether
    or not lanes are forgotten when nothing is in them."""
    queue = NaiveQueue()
    with mock.patch("mpreg_mq.projections.lanes._MAX_IDLE_LANES", most_idle):
        queue.state.messages.lanes._most_lanes = most_idle
        follow(queue, subscriptions, steps)


def follow(queue: NaiveQueue, subscriptions: list[tuple[str, str]], steps: list[tuple[Any, ...]]) -> None:
    """A story, and then all that can be delivered."""
    for subscription in subscriptions:
        queue.join(*subscription)
    for name, *arguments in steps:
        getattr(queue, name)(*arguments)
    assert len(queue.state.messages.lanes) == len(queue.waiting)
    while queue.waiting and any(queue.takers(entry) for entry in queue.waiting):
        queue.deliver()
    queue.look()
    queue.state.check()


def state_with(*events: e.Event) -> QueueState:
    return QueueState.replay([e.QueueCreated(1.0, "q", QueueConfiguration("q")), *events])


def joined(name: str, pattern: str, pull: bool = False) -> e.SubscriberJoined:
    return e.SubscriberJoined(1.0, name, f"{name}:{pattern}", pattern, 10, pull)


def test_a_lane_is_kept_whole_where_its_topics_keep_one_audience() -> None:
    """Given ready messages of two topics, when both gain the same taker, then the lane gains it and nothing moves."""
    state = state_with(joined("a", "#"), *(e.MessageEnqueued(1.0, i, t, b"") for i, t in (("1", "x"), ("2", "z"))))
    before = {slot.message.id: slot.lane for slot in state.messages.lanes.ready_for("a")}
    state.apply(joined("b", "#"))
    after = {slot.message.id: slot.lane for slot in state.messages.lanes.ready_for("b")}
    assert after == before
    assert after["1"] is after["2"]
    state.check()


def test_a_lane_splits_where_its_topics_part() -> None:
    """Given ready messages of two topics, when one gains a taker, then each topic has its lane, in order."""
    sent = [e.MessageEnqueued(1.0, str(n), "x" if n % 2 else "z", b"") for n in range(6)]
    state = state_with(joined("a", "#"), *sent)
    state.apply(joined("b", "x"))
    assert [slot.message.id for slot in state.messages.lanes.ready_for("b")] == ["1", "3", "5"]
    assert [slot.message.id for slot in state.messages.lanes.ready_for("a")] == [str(n) for n in range(6)]
    state.check()


def test_a_fetch_right_after_a_subscription_sees_what_it_brought() -> None:
    """Given a waiting message, when a puller joins and nothing was dispatched yet, then the message is there for it."""
    state = state_with(e.MessageEnqueued(1.0, "1", "x", b""), joined("p", "x", pull=True))
    assert [slot.message.id for slot in state.messages.lanes.ready_for("p")] == ["1"]
    assert list(state.messages.lanes.ready_for("nobody")) == []


def test_what_left_from_the_middle_is_passed_over_when_it_comes_first() -> None:
    """Given three in order, when the second and then the first leave, then the third is next."""
    state = state_with(joined("a", "#"), *(e.MessageEnqueued(1.0, str(n), "x", b"") for n in (1, 2, 3)))
    state.apply(e.MessageDropped(1.0, "2"))
    state.apply(e.MessageDropped(1.0, "1"))
    found = state.messages.lanes.next()
    assert found is not None
    assert found[0].message.id == "3"
    state.check()


def test_an_overtaken_head_is_passed_over() -> None:
    """Given a message that a more urgent one overtook, when that one is gone, then the first is next, and only once."""
    state = QueueState.replay(
        [e.QueueCreated(1.0, "q", QueueConfiguration("q", QueueType.PRIORITY)), joined("a", "#")]
        + [e.MessageEnqueued(1.0, str(n), "x", b"", options=MessageOptions(priority=n)) for n in (1, 2)]
    )
    for name in ("2", "1"):
        found = state.messages.lanes.next()
        assert found is not None
        assert found[0].message.id == name
        state.apply(e.MessageDelivered(1.0, name, "a", "a:#", 1, 9.0))
        state.check()
    assert state.messages.lanes.next() is None


def test_lanes_that_nothing_is_in_are_forgotten() -> None:
    """Given ever new subscribers' topics, one message at a time, then the index holds a bounded number of lanes, and
    the message of a subscriber whose lane was forgotten is found again."""
    count = 30
    state = state_with(*(joined(f"s{number}", f"t{number}", pull=True) for number in range(count)))
    lanes = state.messages.lanes
    with mock.patch("mpreg_mq.projections.lanes._MAX_IDLE_LANES", 4):
        lanes._most_lanes = 4
        state.apply(e.MessageEnqueued(1.0, "stays", "t0", b""))
        for number in range(2 * count):
            who, message_id = f"s{number % count}", f"m{number}"
            state.apply(e.MessageEnqueued(1.0, message_id, f"t{number % count}", b""))
            assert message_id in [slot.message.id for slot in lanes.ready_for(who)]
            state.apply(e.MessageDelivered(1.0, message_id, who, f"{who}:t", 1, 99.0))
            state.apply(e.MessageAcknowledged(1.0, message_id, who, True))
            assert len(lanes._shared) <= 2 * 1 + 4
            assert len(lanes._lanes_of) <= 2 * 1 + 4
            state.check()
    assert [slot.message.id for slot in lanes.ready_for("s0")] == ["stays"]


def test_a_subscriber_keeps_its_other_lanes_where_one_is_forgotten() -> None:
    """Given a subscriber of two lanes, when the one that nothing is in is forgotten, then its message in the other is
    delivered once it can take one again."""
    state = state_with(e.SubscriberJoined(1.0, "a", "a:#", "#", 1), joined("b", "x"), joined("c", "z"))
    lanes = state.messages.lanes
    assert lanes.next() is None
    for message_id, topic in (("1", "y"), ("2", "x"), ("3", "y")):
        state.apply(e.MessageEnqueued(1.0, message_id, topic, b""))
    state.apply(e.MessageDropped(1.0, "2"))
    state.apply(e.MessageDelivered(1.0, "1", "a", "a:#", 1, 99.0))
    assert lanes.next() is None
    assert [lane.members for lane in lanes._lanes_of["a"]] == [("a",), ("a", "b")]
    lanes._most_lanes = 2
    state.apply(e.MessageEnqueued(1.0, "4", "z", b""))
    assert [lane.members for lane in lanes._lanes_of["a"]] == [("a",), ("a", "c")]
    state.apply(e.MessageDropped(1.0, "4"))
    state.apply(e.MessageAcknowledged(1.0, "1", "a", True))
    found = lanes.next()
    assert found is not None
    assert (found[0].message.id, found[1].id) == ("3", "a")
    state.check()


def test_o1_a_row_begins_in_the_lane_of_the_first_that_is_left() -> None:
    """Given two lanes whose messages are dropped one after another, then a row begins where the first of those is that
    are left, and in the end nowhere."""
    state = state_with(joined("a", "x"), joined("b", "z"))
    lanes = state.messages.lanes
    assert lanes.front() is None
    for message_id, topic in (("1", "x"), ("2", "x"), ("3", "z"), ("4", "x")):
        state.apply(e.MessageEnqueued(1.0, message_id, topic, b""))
    for dropped, begins in (("1", ("a", (0.0, 3))), ("2", ("b", (0.0, 4))), ("3", ("a", (inf, 0)))):
        state.apply(e.MessageDropped(1.0, dropped))
        front = lanes.front()
        assert front is not None
        assert (front[1].id, front[2]) == begins
        assert front[0].members == (front[1].id,)
        state.check()
    state.apply(e.MessageDropped(1.0, "4"))
    assert lanes.front() is None


def test_what_is_unplaced_has_its_taker_once_all_before_it_have_left() -> None:
    """Given a message before those that wait unplaced, then nobody takes these; when it was dropped, their only
    subscriber does."""
    everyday: list[e.Event] = []
    for message_id in ("d1", "d2"):
        everyday.append(e.MessageEnqueued(1.0, message_id, "x", b""))
        everyday.append(e.MessageDelivered(1.0, message_id, "a", "a:x", 1, 99.0))
        everyday.append(e.MessageAcknowledged(1.0, message_id, "a", True))
    before = e.MessageEnqueued(1.0, "before", "z", b"")
    state = state_with(joined("a", "x"), joined("b", "z"), before, *everyday, e.MessageEnqueued(1.0, "1", "x", b""))
    messages = state.messages
    assert list(messages.unplaced) == ["1"]
    assert messages.first_unplaced() is None
    state.apply_all(
        [e.MessageDelivered(1.0, "before", "b", "b:z", 1, 99.0), e.MessageAcknowledged(1.0, "before", "b", True)]
    )
    assert list(messages.unplaced) == ["1"]
    assert messages.may_deliver
    found = messages.first_unplaced()
    assert found is not None
    assert (found[0][0].message_id, found[1].id) == ("1", "a")
    state.check()


def test_a_lane_that_another_has_joined_has_no_taker_until_somebody_looks() -> None:
    """Given a lane of one subscriber, when another one subscribes, then who takes what comes into it is not known."""
    state = state_with(joined("a", "x"))
    lanes = state.messages.lanes
    assert lanes.next() is None
    state.apply(e.MessageEnqueued(1.0, "1", "x", b""))
    (lane,) = lanes._shared.values()
    state.apply(e.MessageDropped(1.0, "1"))
    taker = lanes.taker(lane)
    assert taker is not None
    assert taker.id == "a"
    state.apply(joined("b", "x"))
    assert lanes.taker(lane) is None
    assert lanes.next() is None
    state.check()


def test_messages_of_those_who_fetch_are_not_to_be_delivered() -> None:
    """Given messages that only subscribers take who fetch, then there is nothing to look for; when one of them gets
    its messages without asking from then on, then the first is its."""
    state = state_with(joined("p", "#", pull=True))
    lanes = state.messages.lanes
    assert lanes.next() is None
    for number in range(3):
        state.apply(e.MessageEnqueued(1.0, str(number), "x", b""))
        assert not lanes.may_deliver
    state.check()
    state.apply(joined("p", "x"))
    found = lanes.next()
    assert found is not None
    assert (found[0].message.id, found[1].id) == ("0", "p")
    state.check()


def test_heads_do_not_pile_up_while_nothing_is_delivered() -> None:
    """Given lanes that come and go while nobody looks for what is next, as in a replay or a paused queue, then no more
    heads are kept than lanes."""
    count = 30
    state = state_with(*(joined(f"s{number}", f"t{number}") for number in range(count)), joined("all", "t0.#"))
    lanes = state.messages.lanes
    with mock.patch("mpreg_mq.projections.lanes._MAX_IDLE_LANES", 4):
        lanes._most_lanes = 4
        for number in range(20 * count):
            who, message_id = f"s{number % count}", f"m{number}"
            state.apply(e.MessageEnqueued(1.0, message_id, f"t{number % count}", b""))
            state.apply(e.MessageDelivered(1.0, message_id, who, f"{who}:t", 1, 99.0))
            state.apply(e.MessageAcknowledged(1.0, message_id, who, True))
            assert len(lanes._heads) <= 2 * 4 + 2
    state.check()
    state.apply(e.MessageEnqueued(1.0, "last", "t3", b""))
    found = lanes.next()
    assert found is not None
    assert (found[0].message.id, found[1].id) == ("last", "s3")
