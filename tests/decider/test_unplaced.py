"""Messages that nothing has looked at wait unplaced; who looks finds what there would be if none ever did (O1, G2, G5).

Each decision of a scenario is also made from a state in which messages wait unplaced as often as they may, and from one
in which they never do.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, QueueType
from mpreg_mq.projections import Messages, QueueState
from mpreg_mq.projections.lanes import Lanes
from mpreg_mq.projections.message import Defaults
from tests.support.given import Scenario, named


def quick(**configuration: object) -> Scenario:
    """A subscriber whose messages are acknowledged as soon as they are delivered; one was."""
    q = Scenario(**configuration)
    q.left_alone = True
    q.subscribe("s", max_in_flight=3)
    q.send()
    q.deliver_row()
    return q


def unplaced(q: Scenario) -> list[str]:
    """Ids of the messages that wait unplaced."""
    return list(q.live.messages.unplaced)


def test_a_plain_message_waits_unplaced() -> None:
    """Given messages like one that was acknowledged at once, then they wait unplaced, are counted, and go in a row."""
    q = quick()
    sent = [q.send() for _ in range(3)]
    assert unplaced(q) == sent
    assert q.live.messages.pending_count == len(q.live.messages) == 3
    assert q.live.statistics.counts.messages_sent == 4
    assert q.deliver_row() == [(message, "s") for message in sent]
    assert unplaced(q) == []


def test_whoever_asks_what_was_accepted_places_nothing() -> None:
    """Given a leased message and one that waits unplaced, then the events of both are given, and that one stays so."""
    q = quick()
    held = q.send(headers={"k": "v"})
    q.dispatch()
    q.send()
    q.deliver_row()
    waiting = q.send()
    assert unplaced(q) == [waiting]
    assert sorted(event.message_id for event in q.live.messages.all_accepted()) == sorted([held, waiting])
    assert unplaced(q) == [waiting]


def test_nothing_waits_unplaced_before_one_was_acknowledged_at_once() -> None:
    """Given messages whose subscriber takes its time, then they are placed."""
    q = Scenario()
    q.left_alone = True
    q.subscribe("s")
    q.send()
    q.dispatch()
    assert q.live.messages.quick_lane is None
    q.send()
    assert unplaced(q) == []


@pytest.mark.parametrize(
    "asked", [{"priority": 1}, {"delay_seconds": 1.0}, {"group_id": "g"}, {"headers": {"a": "b"}}, {"max_retries": 0}]
)
def test_a_message_that_asks_for_something_has_all_placed(asked: dict[str, Any]) -> None:
    """Given a message with options behind an unplaced one, then both are placed."""
    q = quick()
    q.send()
    q.send(**asked)
    assert unplaced(q) == []


@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM])
def test_g3_a_message_with_an_audience_is_placed(guarantee: DeliveryGuarantee) -> None:
    """Given a broadcast behind an unplaced message, then both are placed."""
    q = quick()
    q.send()
    q.send(guarantee=guarantee)
    assert unplaced(q) == []


@pytest.mark.parametrize("configuration", [{"message_ttl_seconds": 9.0}, {"queue_type": QueueType.DELAY}])
def test_nothing_waits_unplaced_where_messages_have_times(configuration: dict[str, Any]) -> None:
    """Given a queue whose messages expire, or are ordered by when they are due, then all are placed."""
    q = quick(**configuration)
    q.send()
    assert unplaced(q) == []


def test_g2_a_newcomer_has_all_placed() -> None:
    """Given unplaced messages when another subscriber comes, then they are placed and shared out, as are later ones."""
    q = quick()
    first, second = q.send(), q.send()
    q.subscribe("other", max_in_flight=3)
    assert unplaced(q) == []
    assert sorted(q.dispatch()) == [(first, "s"), (second, "other")] or sorted(q.dispatch()) == []
    q.send()
    assert unplaced(q) == []


def test_messages_of_a_history_wait_unplaced_as_well() -> None:
    """Given the history of messages that were acknowledged at once, when it is folded, then the next ones wait, though
    nobody has looked yet who is to get which."""
    q = quick()
    for _ in range(2):
        q.send()
        q.deliver_row()
    q.send()
    state = QueueState.replay(q.history)
    assert list(state.messages.unplaced) == [named(4)]
    assert state.dump() == q.placed.dump()


def test_g5_who_leaves_takes_nobody_s_messages_along() -> None:
    """Given unplaced messages whose subscriber leaves, then they wait, and go to the next that comes."""
    q = quick()
    sent = q.send()
    (subscription,) = q.live.subscribers.get("s").subscriptions  # type: ignore[union-attr]
    q.when(c.Unsubscribe(subscription))
    assert q.dispatch() == []
    q.subscribe("next")
    assert q.dispatch() == [(sent, "next")]


def test_whoever_asks_for_messages_has_them_placed() -> None:
    """Given unplaced messages, when somebody asks for one, then it is what it would be if it had been placed."""
    q = quick()
    q.send()
    sent = q.send()
    message = q.live.messages.get(sent)
    assert message is not None
    assert (message.id, message.seq, message.version) == (sent, 3, q.live.version)
    assert unplaced(q) == []
    assert q.live.messages.get("nobody's") is None


def test_who_asks_for_the_event_has_nothing_placed() -> None:
    """Given unplaced messages, when somebody asks what was accepted, then they stay as they are."""
    q = quick()
    sent = q.send()
    accepted = q.live.messages.accepted(sent)
    assert accepted is q.fresh[0]
    assert unplaced(q) == [sent]
    assert q.live.messages.accepted("nobody's") is None


def test_c2_a_full_subscriber_leaves_the_others_where_they_are() -> None:
    """Given a subscriber with as many in flight as it may have, then what waits unplaced is not delivered."""
    q = quick()
    for _ in range(3):
        q.send()
    assert len(q.dispatch()) == 3
    waiting = q.send()
    assert q.dispatch() == []
    assert q.deliver_row() == []
    q.acknowledge(named(2), "s")
    assert q.dispatch() == [(waiting, "s")]


def test_log_first_what_is_not_stored_is_not_delivered() -> None:
    """Given an unplaced message whose event is not in the log yet, then neither a row nor a dispatch delivers it."""
    q = quick()
    stored = q.send()
    q.durable_version = q.state.version
    waiting = q.send()
    assert q.deliver_row() == [(stored, "s")]
    assert q.deliver_row() == []
    assert q.dispatch() == []
    q.durable_version = q.state.version
    assert q.deliver_row() == [(waiting, "s")]


def test_o2_a_message_of_lower_priority_goes_after_the_unplaced() -> None:
    """Given a priority queue with a placed message below the others, then the unplaced ones go before it."""
    q = Scenario(queue_type=QueueType.PRIORITY)
    q.subscribe("s", "a")
    q.subscribe("t", "b")
    low = q.send("b", priority=-1)
    q.send("a")
    q.deliver_row()
    plain = q.send("a")
    assert plain in unplaced(q)
    assert q.dispatch() == [(plain, "s"), (low, "t")]


def test_a_paused_queue_keeps_what_is_unplaced() -> None:
    """Given a paused queue, then nothing is delivered until it goes on."""
    q = quick()
    sent = q.send()
    q.when(c.Pause())
    assert q.dispatch() == []
    assert q.deliver_row() == []
    q.when(c.Resume())
    assert q.dispatch() == [(sent, "s")]


def test_the_same_id_twice_is_a_contradiction_at_once() -> None:
    """Given an unplaced message, when another has its id, then the fold refuses it there."""
    q = quick()
    q.send()
    (event,) = q.fresh
    with pytest.raises(ProjectionError, match="the message exists"):
        q.live.apply(event)
    with pytest.raises(ProjectionError, match="the message exists"):
        q.placed.apply(event)


def test_so_many_wait_unplaced_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as many unplaced messages as there may be, then the next one has them placed."""
    monkeypatch.setattr("mpreg_mq.projections.everyday.MOST_UNPLACED", 3)
    q = quick()
    for count in (1, 2, 3):
        q.send()
        assert len(unplaced(q)) == count
    q.send()
    assert unplaced(q) == []
    assert len(q.deliver_row()) == 4


def test_a_state_whose_placing_was_interrupted_is_at_no_version() -> None:
    """Given Ctrl-C while messages are placed, then the state is at no version that a log can have."""
    q = quick()
    for _ in range(3):
        q.send()
    with mock.patch.object(Lanes, "place", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        q.live.messages.get(named(3))
    q.live.apply(q.fresh[0])
    assert q.live.version < 0


def test_a_projection_by_itself_has_nobody_to_tell() -> None:
    """Given messages that belong to no state and are placed, when Ctrl-C comes in between, then that goes on."""
    messages = Messages()
    q = Scenario()
    q.send()
    (enqueued,) = q.fresh
    assert isinstance(enqueued, e.MessageEnqueued)
    messages._defaults = Defaults(q.state.configuration)
    messages.unplaced["m"] = (enqueued, 1, 1)
    with mock.patch.object(Lanes, "place", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        messages.get("m")


def test_an_acknowledgment_of_what_nobody_had_is_a_contradiction() -> None:
    """Given an unplaced message, when an event says that it was acknowledged, then the fold refuses it."""
    q = quick()
    sent = q.send()
    with pytest.raises(ProjectionError, match="the message is not the subscriber's"):
        q.live.apply(e.MessageAcknowledged(q.now, sent, "s", True))


def test_g6_which_subscription_gets_it_is_decided_for_each_message() -> None:
    """Given a subscriber with two subscriptions, then messages that wait unplaced go to the one that is for them."""
    q = Scenario()
    everything = q.subscribe("s", "#")
    q.subscribe("s", "other")
    for _ in range(3):
        sent = q.send("t")
        assert q.dispatch() == [(sent, "s")]
        (delivery,) = q.fresh_of(e.MessageDelivered)
        assert delivery.subscription_id == everything
        q.acknowledge(sent, "s")


def test_what_has_gone_from_other_lanes_holds_nobody_up() -> None:
    """Given another lane in which one message overtook another before both were purged, then an unplaced one goes."""
    q = Scenario(queue_type=QueueType.PRIORITY)
    q.left_alone = True
    q.subscribe("s", "a")
    q.subscribe("t", "b")
    for state in (q.live, q.placed):
        state.messages.lanes.settle()
    q.send("a")
    q.send("b")
    q.send("b", priority=5)
    q.when(c.Purge())
    messages = q.live.messages
    messages.be_quick(messages._lanes.lane_of_topic["a"])
    sent = q.send("a")
    assert unplaced(q) == [sent]
    assert q.deliver_row() == [(sent, "s")]


def test_a_purge_takes_what_is_unplaced() -> None:
    """Given unplaced messages, when the queue is emptied, then they are gone, as its reply says."""
    q = quick()
    q.send()
    q.send()
    q.when(c.Purge())
    assert len(q.live.messages) == 0
    assert q.dispatch() == []


@given(
    queue_type=st.sampled_from([QueueType.FIFO, QueueType.PRIORITY]),
    left_alone=st.booleans(),
    steps=st.lists(st.sampled_from(["a", "b", "a", "b", "row", "row", "look", "deliver", "low"]), max_size=25),
)
def test_wherever_messages_wait_they_go_in_their_order_to_whom_they_are_for(
    queue_type: QueueType, left_alone: bool, steps: list[str]
) -> None:
    """For all stories of two topics with a subscriber each: what is delivered is what would be if nothing waited."""
    q = Scenario(queue_type=queue_type)
    q.left_alone = left_alone
    q.subscribe("s", "a")
    q.subscribe("t", "b")
    q.send("a")
    q.send("b")
    while q.deliver_row():
        pass
    for step in [*steps, "row", "row", "row"]:
        match step:
            case "row":
                q.deliver_row(most=3)
            case "look":
                assert len(list(q.live.messages)) == len(q.placed.messages)
            case "deliver":
                for message, subscriber in q.dispatch():
                    q.acknowledge(message, subscriber)
            case "low":
                q.send("b", priority=-1)
            case topic:
                q.send(topic)
        assert all(message in q.state.messages._by_id for message in unplaced(q))


@given(st.lists(st.sampled_from(["sent", "done", "leased"]), max_size=30), st.data())
def test_a_history_comes_to_the_same_however_it_is_cut(kinds: list[str], data: st.DataObject) -> None:
    """For all histories of messages that are sent, delivered and acknowledged at once or later, folded in runs of any
    length: the state is that of the events one by one in which nothing waits unplaced."""
    q = quick()
    waiting: list[str] = []
    for kind in kinds:
        if kind == "sent":
            waiting.append(q.send())
        elif waiting and kind == "done":
            q.deliver_row(most=1)
        elif waiting:
            q.dispatch()
    events = q.history
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)))))
    state = QueueState()
    for first, last in zip([0, *cuts], [*cuts, len(events)], strict=True):
        state.apply_all(events[first:last])
        assert state.version == last
    assert state.dump() == q.placed.dump()
    assert all(type(event) in e.EVENT_TYPES for event in events)
