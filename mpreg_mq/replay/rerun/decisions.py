"""What today's decider says to the fact behind a recorded decision.

Commands are not recorded, but an event says nearly all of the command that led to it. Where it does not (the payload of
a refused send, whether a refusal named its delay), the recorded outcome is taken as given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import msgspec

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, decide, decide_dispatch, decide_tick
from mpreg_mq.actors.decider.delivering import deliver
from mpreg_mq.actors.decider.sending import decide_fire_and_forget, decide_wait_over
from mpreg_mq.actors.decider.settling import backoff_seconds, expire_lease
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, RejectionReason
from mpreg_mq.projections import QueueState

E = TypeVar("E", bound=e.Event)

Events = tuple[e.Event, ...]
Decided = Iterator[Events | None]
"""What the decider may have been asked and says now, the likeliest first; None where that cannot be known."""


def decided(state: QueueState, recorded: Events, recorded_configuration: QueueConfiguration) -> Decided:
    """What today's code says to what was behind these events.

    ``recorded_configuration`` is the queue's then, which tells a delay that was asked for from a backoff.
    """
    context = Context(recorded[0].at)
    for answer in _ASKED[type(recorded[0])](state, recorded, context, recorded_configuration):
        yield None if answer is None else _named_as(recorded, answer)


def _named_as(recorded: Events, answer: Events) -> Events:
    """The answer with the ids that new messages got then; which they get is not a decision."""
    given = [event.message_id for event in recorded if isinstance(event, e.MessageEnqueued)]
    made = [event.message_id for event in answer if isinstance(event, e.MessageEnqueued)]
    names = dict(zip(made, given, strict=False))
    if not names:
        return answer
    return tuple(_renamed(event, names) for event in answer)


def _renamed(event: e.Event, names: Mapping[str, str]) -> e.Event:
    if isinstance(event, e.MessageEnqueued):
        return replaced(event, message_id=names.get(event.message_id, event.message_id))
    if isinstance(event, e.DeadLetterRedriven):
        return replaced(event, new_message_id=names.get(event.new_message_id, event.new_message_id))
    return event


def _command(make: Callable[[Any], Any]) -> Callable[..., Decided]:
    """Ask one command, made from the first event."""

    def ask(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
        yield decide(state, make(recorded[0]), context).events

    return ask


def _given(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    yield None


def _ticked(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    yield decide_tick(state, context).events


def _send(state: QueueState, recorded: Events, context: Context, given: QueueConfiguration) -> Decided:
    enqueued = recorded[-1]
    if isinstance(enqueued, e.DeadLetterRedriven):
        yield decide(state, c.Redrive((enqueued.message_id,)), context).events
        return
    assert isinstance(enqueued, e.MessageEnqueued)
    if enqueued.redriven_from is not None:
        queue, _, message_id = enqueued.redriven_from.partition("/")
        if state.dead_letters.get(message_id) is not None and queue == state.configuration.name:
            yield decide(state, c.Redrive((message_id,)), context).events
            return
        original = replaced(enqueued, message_id=message_id)
        yield decide(state, c.AcceptRedriven((original,), queue), context).events
        return
    yield decide(state, send_of(enqueued), context).events


def send_of(event: e.MessageEnqueued) -> c.Send:
    """The send that an acceptance answers."""
    return c.Send(event.topic, event.payload, event.guarantee, event.options, event.deduplication_key)


def replaced(event: E, **changes: Any) -> E:
    """A copy of an event with changes."""
    if isinstance(event, msgspec.Struct):
        return msgspec.structs.replace(event, **changes)
    return attrs.evolve(event, **changes)


def _dropped(state: QueueState, recorded: Events, context: Context, given: QueueConfiguration) -> Decided:
    return _send(state, recorded, context, given) if len(recorded) > 1 else iter((None,))


def _fired(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.FireAndForgetSent)
    send = c.Send(event.topic, b"", DeliveryGuarantee.FIRE_AND_FORGET, fingerprint=event.deduplication_key)
    refusal = decide_fire_and_forget(state, send, context).events
    yield refusal or recorded


def _duplicate(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.DuplicateRejected)
    key = event.deduplication_key
    # Whoever holds it where the queue does not deduplicate was sent with ``send_once``, and so was this.
    claims = state.configuration.enable_deduplication or state.deduplication.holder(key, context.now) is not None
    yield decide(state, c.Send(event.topic, b"", fingerprint=key if claims else None), context).events


def _rejected(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.MessageRejected)
    if event.reason is not RejectionReason.CAPACITY:
        yield None
        return
    send = c.Send(event.topic, b"")
    found = decide(state, send, context).events
    if found:
        yield found
    # Whoever waits goes on to wait where the queue is told meanwhile to reject at once.
    yield decide_wait_over(state, send, context).events
    yield decide(state, c.SendBatch((send,)), context).events


def _left(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.SubscriberLeft)
    if event.unsubscribed:
        yield decide(state, c.Unsubscribe(event.subscription_id), context).events
        return
    yield decide(state, c.Detach(), context).events
    left = tuple(found.subscription_id for found in recorded if isinstance(found, e.SubscriberLeft))
    yield decide(state, c.Detach(left), context).events


def _delivered(state: QueueState, recorded: Events, context: Context, given: QueueConfiguration) -> Decided:
    last = recorded[-1]
    if isinstance(last, e.MessageDelivered) and last.pull:
        # What has come due may or may not have been made ready when somebody asked.
        for _ in range(2):
            yield decide(state, _receive(state, last, given), context).events
            state.messages.promote(context.now)
        return
    yield decide_dispatch(state, context).events
    state.messages.promote(context.now)
    found = decide_dispatch(state, context).events
    yield found
    if found and isinstance(last, e.MessageDelivered) and getattr(found[0], "message_id", None) == last.message_id:
        yield from _other_copy(state, last, context)


def _other_copy(state: QueueState, delivered: e.MessageDelivered, context: Context) -> Iterator[Events]:
    """The delivery of the recorded copy of a message whose turn it is: which of its copies goes first is no rule."""
    message = state.messages.get(delivered.message_id)
    slot = None if message is None or message.members is None else message.members.get(delivered.subscriber_id)
    subscriber = state.subscribers.get(delivered.subscriber_id)
    if slot is not None and slot.lane is not None and subscriber is not None and subscriber.can_take():
        yield (deliver(state, slot, subscriber, context),)


def _receive(state: QueueState, delivered: e.MessageDelivered, given: QueueConfiguration) -> c.Receive:
    """The receive that brought this message; a timeout that was neither its own nor the queue's was asked for."""
    seconds = delivered.deadline - delivered.at
    message = state.messages.get(delivered.message_id)
    own = None if message is None else message.event.options.visibility_timeout_seconds
    usual = own or given.default_visibility_timeout_seconds
    asked = None if abs(seconds - usual) < 1e-6 else seconds
    return c.Receive(delivered.subscriber_id, visibility_timeout_seconds=asked)


def _expired(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    yield decide_tick(state, context).events
    yield decide_dispatch(state, context).events
    event = recorded[0]
    assert isinstance(event, e.MessageExpired)
    message = state.messages.get(event.message_id)
    if message is not None and message.expires_at is not None and message.expires_at <= context.now:
        yield recorded


def _acknowledged(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.MessageAcknowledged)
    yield decide(state, c.Acknowledge(event.message_id, event.subscriber_id), context).events


def _failed(state: QueueState, recorded: Events, context: Context, given: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.DeliveryFailed)
    requeued = next((found for found in recorded if isinstance(found, e.MessageRequeued)), None)
    delay = None if requeued is None else _asked_delay(event, requeued, given)
    yield decide(
        state, c.NegativeAcknowledge(event.message_id, event.subscriber_id, event.error, delay), context
    ).events


def _asked_delay(failed: e.DeliveryFailed, requeued: e.MessageRequeued, given: QueueConfiguration) -> float | None:
    """The delay that whoever refused the message asked for; None for a backoff.

    A backoff is a random share of a range and hardly ever a whole number of milliseconds.
    """
    delay = requeued.due_at - requeued.at
    usual = backoff_seconds(given, failed.message_id, failed.attempt)
    whole = abs(delay - round(delay, 3)) < 1e-6
    return round(delay, 3) if whole and abs(delay - usual) > 1e-6 else None


def _lease_over(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    event = recorded[0]
    assert isinstance(event, e.LeaseExpired)
    if event.process_ended:
        command = c.EndLease(event.message_id, event.subscriber_id, event.reason)
        yield decide(state, command, context).events
        return
    yield decide_tick(state, context).events
    message = state.messages.get(event.message_id)
    slot = None if message is None else message.slot_for(event.subscriber_id)
    if slot is not None and slot.lease is not None and slot.deadline <= context.now:
        yield expire_lease(state, slot, context, event.reason).events


def _extended(event: e.LeaseExtended) -> c.ExtendLease:
    return c.ExtendLease(event.message_id, event.subscriber_id, event.deadline - event.at)


def _subscribe(event: e.SubscriberJoined) -> c.Subscribe:
    return c.Subscribe(
        event.subscriber_id,
        event.subscription_id,
        event.topic_pattern,
        None if event.pull else _callback,
        event.auto_acknowledge,
        event.max_in_flight,
        metadata=event.metadata,
    )


def _callback(message: object) -> None:
    """Stands for a subscriber's callback, which no decision calls."""


def _purged(state: QueueState, recorded: Events, context: Context, _: QueueConfiguration) -> Decided:
    deleted = isinstance(recorded[-1], e.QueueDeleted)
    yield decide(state, c.Delete() if deleted else c.Purge(), context).events


_ASKED: Mapping[type[e.Event], Callable[[QueueState, Events, Context, QueueConfiguration], Decided]] = {
    e.QueueCreated: _given,
    e.QueueReconfigured: _given,
    e.QueueDeleted: _command(lambda event: c.Delete()),
    e.QueuePaused: _command(lambda event: c.Pause()),
    e.QueueResumed: _command(lambda event: c.Resume()),
    e.SubscriberJoined: _command(_subscribe),
    e.SubscriberLeft: _left,
    e.CircuitOpened: _given,
    e.CircuitHalfOpened: _ticked,
    e.CircuitClosed: _given,
    e.MessageEnqueued: _send,
    e.FireAndForgetSent: _fired,
    e.DuplicateRejected: _duplicate,
    e.MessageRejected: _rejected,
    e.AudienceFixed: _delivered,
    e.AudienceMemberLeft: _given,
    e.MessageDelivered: _delivered,
    e.MessageAcknowledged: _acknowledged,
    e.DeliveryFailed: _failed,
    e.LeaseExpired: _lease_over,
    e.LeaseExtended: _command(_extended),
    e.MessageRequeued: _given,
    e.QuorumMissed: _ticked,
    e.MessageCompleted: _ticked,
    e.MessageDeadLettered: _ticked,
    e.MessageFailed: _ticked,
    e.MessageExpired: _expired,
    e.MessageDropped: _dropped,
    e.MessagesPurged: _purged,
    e.DeadLetterRedriven: _command(
        lambda event: c.RecordRedriven(((event.message_id, event.new_message_id),), event.target_queue)
    ),
    e.DeadLettersPurged: _command(lambda event: c.PurgeDeadLetters(event.message_ids)),
}
"""How to ask today's decider, by the first event of what was recorded."""
