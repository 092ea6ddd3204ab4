"""Events that are folded many at a time come to what they come to one by one (I4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, MessageOptions
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.base import Projection
from mpreg_mq.testing.strategies import histories
from tests.support.given import by_handlers

BEGINNING: tuple[e.Event, ...] = (
    e.QueueCreated(1.0, "q", QueueConfiguration("q")),
    e.SubscriberJoined(1.0, "s", "s/1", "#", 10),
    e.MessageEnqueued(1.0, "m", "t", b""),
    e.MessageDelivered(1.0, "m", "s", "s/1", 1, 99.0),
)


@given(st.data())
def test_wherever_a_history_is_cut_into_runs_the_state_is_the_same(data: st.DataObject) -> None:
    """For all histories and all ways to cut them into runs: the state is that of the handlers, event by event."""
    events = [record.event for record in data.draw(histories())]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)))))
    state = QueueState()
    for first, last in zip([0, *cuts], [*cuts, len(events)], strict=True):
        state.apply_all(events[first:last])
        assert state.version == last
        state.check()
    assert state.dump() == by_handlers(events).dump()


def everyday(number: int, at: float = 2.0) -> tuple[e.Event, ...]:
    """All that almost every message has."""
    return (
        e.MessageEnqueued(at, f"d{number}", "t", b""),
        e.MessageDelivered(at, f"d{number}", "s", "s/1", 1, 99.0),
        e.MessageAcknowledged(at, f"d{number}", "s", True),
    )


QUICK: tuple[e.Event, ...] = (*BEGINNING[:2], *everyday(1), *everyday(2))
"""After which messages wait unplaced."""


@pytest.mark.parametrize("at", [-5.0, 0.5, 3.0])
@pytest.mark.parametrize(
    "after",
    [
        (),
        (e.MessageDelivered(3.0, "1", "s", "s/1", 1, 99.0),),
        (e.MessageDelivered(3.0, "1", "s", "s/1", 1, 99.0), e.MessageAcknowledged(3.0, "1", "s", True)),
        (e.MessageDropped(3.0, "2"),),
        (e.MessageEnqueued(3.0, "9", "t", b"", options=MessageOptions(priority=1)),),
        (e.MessageEnqueued(3.0, "9", "t", b"", DeliveryGuarantee.QUORUM),),
        (e.MessageEnqueued(3.0, "9", "t", b"", deduplication_key="k"),),
        (e.MessageEnqueued(3.0, "9", "another", b""),),
    ],
    ids=lambda after: "+".join(type(event).__name__ for event in after) or "nothing",
)
def test_messages_in_a_row_wait_until_something_else_comes(at: float, after: tuple[e.Event, ...]) -> None:
    """Given a queue whose messages are acknowledged as they are delivered, when several come at once, then they wait
    unplaced, whatever comes after them finds them, and the state is that of the handlers, event by event."""
    row = [e.MessageEnqueued(at + number, str(number), "t", b"") for number in (1, 2, 3)]
    state = QueueState.replay(QUICK)
    state.apply_all(row)
    assert list(state.messages.unplaced) == ["1", "2", "3"]
    state = QueueState.replay(QUICK)
    state.apply_all((*row, *after))
    assert state.dump() == by_handlers((*QUICK, *row, *after)).dump()
    state.check()


def test_s1_no_id_waits_twice() -> None:
    """Given an id that comes again in a row, then the row ends there, and that is told; what came before is folded
    in."""
    row = [e.MessageEnqueued(3.0, number, "t", b"") for number in ("1", "2", "1", "3")]
    state = QueueState.replay(QUICK)
    with pytest.raises(ProjectionError):
        state.apply_all(row)
    state.check()
    assert sorted(message.id for message in state.messages.pending()) == ["1", "2"]


@pytest.mark.parametrize("at", [0.5, 3.0])
@pytest.mark.parametrize("key", [None, "k"])
def test_g1_a_fire_and_forget_message_is_folded_in_by_the_shortest_way(at: float, key: str | None) -> None:
    """Given a message that had its one attempt, then the shortest way comes to the same as the handlers."""
    event = e.FireAndForgetSent(at, "f", "t", ("s",), deduplication_key=key)
    state = QueueState.replay(BEGINNING)
    state.apply_fired(event)
    assert state.dump() == by_handlers((*BEGINNING, event)).dump()
    state.check()


def test_a_delivery_at_the_end_of_a_run_is_folded_in_also_where_reading_fails() -> None:
    """Given events whose reader fails after a delivery, then the state has come as far as the events that were read."""

    def failing() -> Iterator[e.Event]:
        yield from BEGINNING
        raise OSError("the disk is on fire")

    state = QueueState()
    with pytest.raises(OSError, match="on fire"):
        state.apply_all(failing())
    assert state.dump() == by_handlers(BEGINNING).dump()


@pytest.mark.parametrize("held", [("3", "4"), ("4", "3")])
def test_snapshots_of_equal_states_are_equal(held: tuple[str, str]) -> None:
    """Given the same leases, opened in another order and among others, then the snapshots have the same bytes."""
    events = list(BEGINNING[:2])
    for number in ("1", *held):
        events.append(e.MessageEnqueued(1.0, number, "t", b""))
    events.append(e.MessageDelivered(1.0, "1", "s", "s/1", 1, 99.0))
    events.append(e.MessageAcknowledged(1.0, "1", "s", True))
    events += [e.MessageDelivered(1.0, number, "s", "s/1", 1, 99.0) for number in held]
    subscribers = QueueState.replay(events).subscribers.dump()
    assert [dump.held for dump in subscribers.subscribers] == [["3", "4"]]


def test_a_message_that_overtook_another_is_folded_in_with_its_acknowledgment() -> None:
    """Given two messages, when a run of events tells that the second was delivered and acknowledged, then the first is
    the one that is left."""
    events = [*BEGINNING[:2], *(e.MessageEnqueued(1.0, number, "t", b"") for number in "12")]
    run = (e.MessageDelivered(2.0, "2", "s", "s/1", 1, 99.0), e.MessageAcknowledged(2.0, "2", "s", True))
    state = QueueState.replay(events)
    state.apply_all(run)
    assert state.dump() == by_handlers((*events, *run)).dump()
    assert [message.id for message in state.messages.pending()] == ["1"]
    state.check()


def test_who_was_passed_over_is_looked_at_again_after_an_acknowledgment() -> None:
    """Given a subscriber that was passed over because it was full, when a run of events tells of a delivery to it and
    its acknowledgment, then it is looked at again, as it is after the same events one by one."""
    events: list[e.Event] = [BEGINNING[0], e.SubscriberJoined(1.0, "s", "s/1", "#", 1)]
    events += [e.MessageEnqueued(1.0, number, "t", b"") for number in "123"]
    events.append(e.MessageDelivered(1.0, "1", "s", "s/1", 1, 99.0))
    run = (e.MessageDelivered(1.0, "2", "s", "s/1", 1, 99.0), e.MessageAcknowledged(1.0, "2", "s", True))
    for fold in (QueueState.apply_all, Projection.apply_all):
        state = QueueState.replay(events)
        lanes = state.messages.lanes
        assert lanes.next() is None
        assert not lanes.may_deliver
        fold(state, run)
        assert lanes.may_deliver
        assert lanes.next() is None
        state.check()
