"""Decisions about deliveries: who gets which message now (SEMANTICS G2-G5, O1-O3, T1, L1, C2)."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nextafter
from typing import NamedTuple

from mpreg_mq.actors.commands import MEMBER, Receive
from mpreg_mq.actors.decider.decision import NOTHING, Context, Decision
from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, CircuitState, DeliveryGuarantee
from mpreg_mq.projections import Message, Messages, QueueState, Slot, Subscriber
from mpreg_mq.projections.lanes import BEHIND_ALL, Lane, Place
from mpreg_mq.projections.message import PLAIN_RANK

_CLOSED = CircuitState.CLOSED
_AT_LEAST_ONCE = DeliveryGuarantee.AT_LEAST_ONCE


def decide_dispatch(state: QueueState, context: Context) -> Decision:
    """:func:`next_dispatch` as a decision."""
    event = next_dispatch(state, context)
    return NOTHING if event is None else Decision((event,))


def next_dispatch(
    state: QueueState, context: Context
) -> e.MessageDelivered | e.MessageExpired | e.AudienceFixed | None:
    """The next delivery to a push subscriber, or what has to happen before it; None when nothing can move.

    One step at a time, so that each sees the state the one before left. O(log n).
    """
    if state.paused or state.deleted:
        return None
    messages = state.messages
    now = context.now
    if messages.unplaced and (first := messages.first_unplaced()) is not None:
        (accepted, version, _), subscriber = first
        subscription_id = subscriber.only_subscription
        if version > context.durable_version:
            return None
        if subscription_id is not None:
            # As deliver, in place.
            deadline = now + state.configuration.default_acknowledgment_timeout_seconds
            return e.MessageDelivered(now, accepted.message_id, subscriber.id, subscription_id, 1, deadline)
    lanes = messages.older_lanes
    while True:
        found = lanes.next()
        if messages.unplaced and (found is None or found[0].message.rank > PLAIN_RANK):
            messages.place_all()
            found = lanes.next()
        if found is None:
            return None
        slot, subscriber = found
        message = slot.message
        if message.version > context.durable_version:
            return None
        if slot.due_at > now:
            messages.wait_again(slot)
            continue
        if message.expires_at is not None and message.expires_at <= now:
            if message.live:
                messages.park(slot)
                continue
            return e.MessageExpired(now, message.id)
        if message.guarantee is not _AT_LEAST_ONCE and message.members is None:
            return fix_audience(state, message, context)
        options = message.event.options
        subscription_id = subscriber.only_subscription
        if options is not DEFAULT_OPTIONS or subscription_id is None:
            return deliver(state, slot, subscriber, context)
        # As deliver, in place, for what most deliveries are.
        deadline = now + state.configuration.default_acknowledgment_timeout_seconds
        return e.MessageDelivered(now, message.id, subscriber.id, subscription_id, slot.attempts + 1, deadline)


Dispatched = tuple[e.MessageEnqueued, e.MessageDelivered]
"""A message as it was accepted, and its delivery."""


class Row(NamedTuple):
    """Deliveries to one subscription, one after another."""

    subscriber_id: str
    subscription_id: str
    deliveries: Iterator[Dispatched]


def row_of_deliveries(state: QueueState, context: Context) -> Row | None:
    """The next deliveries to a callback, each as :func:`next_dispatch` makes it once the one before was acknowledged.

    They are made one by one, at the time that the context has then, and end where something else may have to come first
    or there is something special about a message. Meanwhile the state stays as it is: who asks for the next one says
    that the one before was acknowledged and that nothing else happened. None where there is nothing of the kind, which
    does not mean that nothing can move. O(1) each.
    """
    if state.paused or state.deleted:
        return None
    messages = state.messages
    taker = messages.taker_of_unplaced()
    if taker is not None:
        lane, limit = None, BEHIND_ALL
    else:
        found = messages.older_lanes.front()
        if found is None:
            return None
        lane, taker, limit = found
        if messages.unplaced:
            limit = min(limit, messages.place_of_unplaced())
    subscription_id = taker.only_subscription
    if subscription_id is None or taker.circuit is not _CLOSED:
        return None
    seconds = state.configuration.default_acknowledgment_timeout_seconds
    if lane is None:
        deliveries = _unplaced_in_a_row(messages, context, seconds, taker.id, subscription_id)
    else:
        deliveries = _in_a_row(messages, context, seconds, lane, limit, taker.id, subscription_id)
    return Row(taker.id, subscription_id, deliveries)


def _unplaced_in_a_row(
    messages: Messages, context: Context, seconds: float, subscriber_id: str, subscription_id: str
) -> Iterator[Dispatched]:
    earliest, durable_version = messages.deadlines.earliest, context.durable_version
    for accepted, version, _ in messages.unplaced.values():
        now = context.now
        if version > durable_version or earliest <= now:
            return
        yield (
            accepted,
            e.MessageDelivered(now, accepted.message_id, subscriber_id, subscription_id, 1, now + seconds),
        )


def _in_a_row(
    messages: Messages,
    context: Context,
    seconds: float,
    lane: Lane,
    limit: Place,
    subscriber_id: str,
    subscription_id: str,
) -> Iterator[Dispatched]:
    earliest = messages.deadlines.earliest
    for entry in lane.row:
        slot = entry[3]
        message = slot.message
        accepted = message.event
        now = context.now
        if (
            slot.lane is not lane
            or slot.ticket != entry[2]
            or message.started
            or message.expires_at is not None
            or accepted.options is not DEFAULT_OPTIONS
            or message.guarantee is not _AT_LEAST_ONCE
            or message.version > context.durable_version
            or earliest <= now
            or entry >= limit
        ):
            return
        attempt = slot.attempts + 1
        yield accepted, e.MessageDelivered(now, message.id, subscriber_id, subscription_id, attempt, now + seconds)


def decide_receive(state: QueueState, command: Receive, context: Context) -> Decision:
    """Lease the first messages in queue order to a pull subscriber; replies their ids (L1).

    Replies an empty list when there is nothing to take now. O(lanes of the subscriber + max_messages), and the messages
    that come before for its callbacks on other nodes, if it has some there and here.
    """
    state.messages.promote(context.now)
    subscriber = state.subscribers.get(command.subscriber_id)
    if subscriber is None or not subscriber.can_take() or state.paused or state.deleted:
        return Decision(reply=[])
    if not subscriber.pull:
        # The receive has waited since before it subscribed with a callback.
        return Decision(reply=[])
    room = subscriber.max_in_flight - len(subscriber.held)
    if subscriber.circuit is CircuitState.HALF_OPEN:
        room = 1
    limit = min(room, command.max_messages)
    own = None if command.member is None else _subscriptions_of(subscriber, command.member)
    room_bytes = inf if command.max_bytes is None else command.max_bytes
    events: list[e.Event] = []
    taken: list[str] = []
    early: list[Slot] = []
    for slot in state.messages.lanes.ready_for(command.subscriber_id):
        message = slot.message
        if len(taken) >= limit or message.version > context.durable_version:
            break
        if slot.due_at > context.now:
            early.append(slot)
            continue
        if message.expires_at is not None and message.expires_at <= context.now:
            if not message.live:
                events.append(e.MessageExpired(context.now, message.id))
            continue
        subscription_id = subscriber.only_subscription
        if own is not None and len(own) < len(subscriber.subscriptions):
            subscription_id = state.subscribers.subscription_among(subscriber, message.topic, own)
            if subscription_id is None:
                continue
        room_bytes -= len(message.event.payload)
        if room_bytes < 0 and taken:
            break
        if message.guarantee is not DeliveryGuarantee.AT_LEAST_ONCE and message.members is None:
            events.append(fix_audience(state, message, context))
        events.append(deliver(state, slot, subscriber, context, command, subscription_id))
        taken.append(message.id)
    for slot in early:
        state.messages.wait_again(slot)
    return Decision(tuple(events), taken)


def _subscriptions_of(subscriber: Subscriber, member: str) -> set[str]:
    return {one.subscription_id for one in subscriber.subscriptions.values() if one.metadata.get(MEMBER) == member}


def fix_audience(state: QueueState, message: Message, context: Context) -> e.AudienceFixed:
    """Everybody who matches now is the audience (G3)."""
    return e.AudienceFixed(context.now, message.id, state.subscribers.audience(message.topic))


def deliver(
    state: QueueState,
    slot: Slot,
    subscriber: Subscriber,
    context: Context,
    pull: Receive | None = None,
    subscription_id: str | None = None,
) -> e.MessageDelivered:
    """Open the next lease of this slot (L1): the acknowledgment timeout for push, the visibility timeout for pull.

    Push is also what a node fetches for its callbacks.
    """
    configuration = state.configuration
    message = slot.message
    options = message.event.options
    if pull is None or pull.member is not None:
        seconds = options.acknowledgment_timeout_seconds or configuration.default_acknowledgment_timeout_seconds
        deadline = context.now + seconds
    else:
        seconds = (
            pull.visibility_timeout_seconds
            or options.visibility_timeout_seconds
            or configuration.default_visibility_timeout_seconds
        )
        # However short it is, whoever fetches the message has it for a while.
        deadline = max(context.now + seconds, nextafter(context.now, inf))
    return e.MessageDelivered(
        context.now,
        message.id,
        subscriber.id,
        subscription_id
        or subscriber.only_subscription
        or state.subscribers.subscription_for(subscriber, message.topic),
        slot.attempts + 1,
        deadline,
        pull is not None,
    )
