"""The three events that almost every message has, folded into all projections of a queue in one go.

A function is what the handlers of the projections do, one after another, for a message about which there is nothing
special: of no group, with no audience, no TTL and no key. What is special goes to the handlers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, CircuitState, DeliveryGuarantee
from mpreg_mq.projections.deadlines import DeadlineKind
from mpreg_mq.projections.message import NO_SLOT, PLAIN_RANK, Message, Slot
from mpreg_mq.projections.unfinished import MOST_UNPLACED

if TYPE_CHECKING:
    from mpreg_mq.projections.queue_state import QueueState

_CLOSED = CircuitState.CLOSED
_LEASE = DeadlineKind.LEASE
_AT_LEAST_ONCE = DeliveryGuarantee.AT_LEAST_ONCE


def enqueued(state: QueueState, event: e.MessageEnqueued) -> None:
    """Fold a message in."""
    messages = state.messages
    unplaced = messages.unplaced
    message_id = event.message_id
    quick_lane = messages.quick_lane
    if (
        quick_lane is not None
        and event.options is DEFAULT_OPTIONS
        and event.deduplication_key is None
        and event.guarantee is _AT_LEAST_ONCE
        and messages._lanes.lane_of_topic.get(event.topic) is quick_lane
        and message_id not in unplaced
        and message_id not in messages._by_id
        and len(unplaced) < MOST_UNPLACED
    ):
        seq = messages.next_seq
        unplaced[message_id] = event, state.version, seq
        messages.next_seq = seq + 1
        messages.accepted_count += 1
        messages.pending_count += 1
        state.statistics.counts.messages_sent += 1
        return
    if unplaced:
        messages.place_all()
    defaults = messages._defaults
    by_id = messages._by_id
    if (
        event.options is DEFAULT_OPTIONS
        and event.deduplication_key is None
        and defaults is not None
        and defaults.plain
        and message_id not in by_id
    ):
        seq = messages.next_seq
        # As plain_message, in place.
        by_id[message_id] = message = Message(
            event,
            message_id,
            event.topic,
            event.guarantee,
            seq,
            state.version,
            PLAIN_RANK,
            defaults.max_attempts,
            None,
            None,
        )
        message.slot = slot = Slot(message, None, event.at)
        messages.next_seq = seq + 1
        messages.accepted_count += 1
        messages.pending_count += 1
        messages._lanes.place(slot)
        state.statistics.counts.messages_sent += 1
    else:
        messages.version = state.version
        messages._on_enqueued(event)
        state.statistics._on_enqueued(event)
        state.deduplication._on_accepted(event)


def enqueued_in_a_row(state: QueueState, first: e.MessageEnqueued, following: Iterator[e.Event]) -> e.Event | None:
    """Fold messages in that come one after another, as far as they may wait unplaced.

    That is as if each went through :func:`enqueued`. What comes after them, and is not folded in, or None where nothing
    does; that may be the first itself.
    """
    messages = state.messages
    unplaced, by_id, quick_lane = messages.unplaced, messages._by_id, messages.quick_lane
    lane_of = messages._lanes.lane_of_topic.get
    before = len(unplaced)
    at, version, seq = state.last_at, state.version, messages.next_seq
    last_seq = seq + MOST_UNPLACED - before - 1
    event: Any = first
    try:
        while (
            quick_lane is not None
            and event.options is DEFAULT_OPTIONS
            and event.deduplication_key is None
            and event.guarantee is _AT_LEAST_ONCE
            and lane_of(event.topic) is quick_lane
            and (message_id := event.message_id) not in unplaced
            and (not by_id or message_id not in by_id)
            and seq <= last_seq
        ):
            version += 1
            unplaced[message_id] = event, version, seq
            seq += 1
            at = event.at
            event = next(following, None)
            if type(event) is not e.MessageEnqueued:
                break
    finally:
        # From what there is, also where something ended this before its time.
        count = len(unplaced) - before
        state.version += count
        if at > state.last_at:
            state.last_at = at
        messages.next_seq += count
        messages.accepted_count += count
        messages.pending_count += count
        state.statistics.counts.messages_sent += count
    after: e.Event | None = event
    return after


def delivered(state: QueueState, event: e.MessageDelivered) -> None:
    """Fold a delivery in."""
    subscribers, messages = state.subscribers, state.messages
    message_id, subscriber_id = event.message_id, event.subscriber_id
    if message_id in messages.unplaced:
        messages.place_all()
    message, subscriber = messages._by_id.get(message_id), subscribers.get(subscriber_id)
    if (
        message is not None
        and subscriber is not None
        and subscriber.circuit is _CLOSED
        and message.members is None
        and message.group_id is None
        and message.ttl_timer is None
        and message_id not in subscribers._holders
        and (lane := (slot := message.slot).lane) is not None
    ):
        subscribers._deliveries = subscriber.last_used = subscribers._deliveries + 1
        subscriber.held.add(message_id)
        subscribers._holders[message_id] = subscriber.alone
        lane.drop(slot)
        slot.attempts = event.attempt
        slot.last_subscriber = subscriber_id
        slot.lease = event
        slot.deadline = deadline = event.deadline
        slot.timer = messages.deadlines.add(deadline, _LEASE, slot)
        message.started = True
        message.live = 1
        messages.leased_count += 1
        messages.pending_count -= 1
        statistics = state.statistics
        statistics.counts.messages_received += 1
        statistics._delivered_at[message_id] = event.at
    else:
        subscribers._on_delivered(event)
        messages._on_delivered(event)
        state.statistics._on_delivered(event)


def acknowledged(state: QueueState, event: e.MessageAcknowledged) -> None:
    """Fold an acknowledgment in."""
    subscribers, messages = state.subscribers, state.messages
    message_id, subscriber_id = event.message_id, event.subscriber_id
    message, subscriber = messages._by_id.get(message_id), subscribers.get(subscriber_id)
    if (
        message is not None
        and subscriber is not None
        and event.completes
        and message.members is None
        and message.group_id is None
        and (lease := (slot := message.slot).lease) is not None
        and lease.subscriber_id == subscriber_id
        and (timer := slot.timer) is not None
        and subscriber.subscriptions
        and subscriber.probe is None
        and (delivered_at := state.statistics._delivered_at.get(message_id)) is not None
    ):
        subscriber.failures = 0
        del subscribers._holders[message_id]
        subscriber.held.discard(message_id)
        # As Deadlines.remove, in place, for the first of a row.
        deadlines = messages.deadlines
        row = deadlines._row
        if row and row[0] is timer:
            timer.target = None
            row.popleft()
        else:
            deadlines.remove(timer)
        del messages._by_id[message_id]
        messages.leased_count -= 1
        messages.finished_count += 1
        message.slot = NO_SLOT
        lanes = messages._lanes
        if subscriber_id in lanes.starved:
            lanes.wake(subscriber_id)
        statistics = state.statistics
        del statistics._delivered_at[message_id]
        statistics._processing_seconds += event.at - delivered_at
        statistics._processed += 1
        statistics.counts.messages_acknowledged += 1
    else:
        if message is None and message_id in messages.unplaced:
            messages.place_all()
        subscribers._on_acknowledged(event)
        messages._on_acknowledged(event)
        state.statistics._on_acknowledged(event)


def delivered_and_acknowledged(
    state: QueueState, delivery: e.MessageDelivered, acknowledgment: e.MessageAcknowledged
) -> bool:
    """Fold a message's delivery in together with its acknowledgment, by the same subscriber, that comes next.

    False, with nothing done, where there is something special about the message.
    """
    subscribers, messages = state.subscribers, state.messages
    message_id, subscriber_id = delivery.message_id, delivery.subscriber_id
    subscriber = subscribers.get(subscriber_id)
    at = acknowledgment.at
    if (
        subscriber is None
        or subscriber.circuit is not _CLOSED
        or not subscriber.subscriptions
        or not acknowledgment.completes
        or delivery.at > at
    ):
        return False
    unplaced = messages.unplaced
    if message_id in unplaced:
        state.version += 2
        del unplaced[message_id]
    else:
        message = messages._by_id.get(message_id)
        if (
            message is None
            # As it is also where it has, or had, an audience or a holder.
            or message.started
            or message.group_id is not None
            or message.ttl_timer is not None
            or (lane := (slot := message.slot).lane) is None
        ):
            return False
        state.version += 2
        # As Lane.drop, in place, for the first of a row, which is what most are that are delivered.
        row = lane.row
        if row and row[0][3] is slot:
            slot.lane = None
            lane.size -= 1
            row.popleft()
        else:
            lane.drop(slot)
        del messages._by_id[message_id]
        message.slot = NO_SLOT
        if lane.only is not None and lane is not messages.quick_lane:
            messages.be_quick(lane)
    if at > state.last_at:
        state.last_at = at
    subscribers._deliveries = subscriber.last_used = subscribers._deliveries + 1
    subscriber.failures = 0
    # The deadline that its lease would have had has come and gone; later ones are numbered after it.
    messages.deadlines._ordinal += 1
    messages.pending_count -= 1
    messages.finished_count += 1
    lanes = messages._lanes
    if subscriber_id in lanes.starved:
        lanes.wake(subscriber_id)
    statistics = state.statistics
    statistics._processing_seconds += at - delivery.at
    statistics._processed += 1
    counts = statistics.counts
    counts.messages_received += 1
    counts.messages_acknowledged += 1
    return True


def delivered_and_acknowledged_in_a_row(state: QueueState, events: Sequence[e.Event]) -> None:
    """Fold deliveries in, each with its acknowledgment right behind it, as the decider makes them in a row.

    That is as if each pair went through :func:`delivered_and_acknowledged`: they are of the first slots of a lane, or
    of the first messages that are unplaced, to the same subscriber, and there is nothing special about any of them.
    """
    subscribers, messages, statistics = state.subscribers, state.messages, state.statistics
    told: Iterator[Any] = iter(events)
    seconds = statistics._processing_seconds
    pairs = len(events) // 2
    # First: should Ctrl-C come in between, the state is at no version that the log has, and is built anew.
    state.version += 2 * pairs
    first: Any = events[0]
    unplaced = messages.unplaced
    if first.message_id in unplaced:
        for delivery, acknowledgment in zip(told, told, strict=True):
            del unplaced[delivery.message_id]
            seconds += acknowledgment.at - delivery.at
    else:
        by_id = messages._by_id
        lane = by_id[first.message_id].slot.lane
        assert lane is not None
        row = lane.row
        for delivery, acknowledgment in zip(told, told, strict=True):
            row.popleft()
            message = by_id.pop(delivery.message_id)
            message.slot.lane = None
            message.slot = NO_SLOT
            seconds += acknowledgment.at - delivery.at
        lane.size -= pairs
        messages.be_quick(lane)
    state.last_at = max(state.last_at, events[-1].at)
    subscriber = subscribers.get(first.subscriber_id)
    assert subscriber is not None
    subscribers._deliveries = subscriber.last_used = subscribers._deliveries + pairs
    subscriber.failures = 0
    messages.deadlines._ordinal += pairs
    messages.pending_count -= pairs
    messages.finished_count += pairs
    statistics._processing_seconds = seconds
    statistics._processed += pairs
    counts = statistics.counts
    counts.messages_received += pairs
    counts.messages_acknowledged += pairs
