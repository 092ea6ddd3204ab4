"""Decisions about what became of a delivery (SEMANTICS L1-L4, R1-R3, D1, G2-G4)."""

from __future__ import annotations

from hashlib import blake2b

from mpreg_mq._validation import storable
from mpreg_mq.actors.commands import Acknowledge, EndLease, ExtendLease, NegativeAcknowledge
from mpreg_mq.actors.decider.decision import Context, Decision
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from mpreg_mq.projections import Message, QueueState, Slot

REFUSED = Decision(reply=False)
"""The command came from a stranger, too late, or twice: it changes nothing (L2)."""


def decide_acknowledge(state: QueueState, command: Acknowledge, context: Context) -> Decision:
    """Take an acknowledgment; replies whether it counted (L2). See :func:`acknowledge`."""
    events = acknowledge(state, command.message_id, command.subscriber_id, command.attempt, context)
    return Decision(events, True) if events else REFUSED


def acknowledge(
    state: QueueState, message_id: str, subscriber_id: str, attempt: int | None, context: Context
) -> tuple[e.Event, ...]:
    """Take an acknowledgment: its events, or none where it does not count (L2). O(log n).

    It counts from the subscriber whose lease was the latest, even if that lease ran out meanwhile. With
    ``attempt`` it counts only for that attempt, so that a callback which comes back late settles nothing new.
    """
    message = state.messages.get(message_id)
    slot = message.slot_for(subscriber_id) if message is not None else None
    if message is None or slot is None or slot.acknowledged or not slot.attempts:
        return ()
    if attempt is not None and attempt != slot.attempts:
        return ()
    alone = message.guarantee is DeliveryGuarantee.AT_LEAST_ONCE
    events: tuple[e.Event, ...] = (e.MessageAcknowledged(context.now, message_id, subscriber_id, alone),)
    subscriber = state.subscribers.get(subscriber_id)
    if subscriber is not None and subscriber.circuit is CircuitState.HALF_OPEN:
        events += (e.CircuitClosed(context.now, subscriber_id),)
    if message.members is not None:
        events += tuple(
            audience_outcome(
                state,
                message,
                context,
                acknowledgments=message.acknowledgments + 1,
                exhausted=message.exhausted - slot.exhausted,
                members=len(message.members),
                slot=slot,
            )
        )
    return events


def decide_negative_acknowledge(state: QueueState, command: NegativeAcknowledge, context: Context) -> Decision:
    """A subscriber gives its lease back as a failed attempt; replies whether it had one (L3)."""
    slot = _leased_slot(state, command.message_id, command.subscriber_id, command.attempt)
    if slot is None:
        return REFUSED
    error = storable(command.error)
    failed = e.DeliveryFailed(context.now, command.message_id, command.subscriber_id, slot.attempts, error)
    return Decision((failed, *_after_failure(state, slot, context, error, command.delay_seconds)), True)


def decide_extend(state: QueueState, command: ExtendLease, context: Context) -> Decision:
    """Move the deadline of an open lease; replies whether there was one (L3)."""
    slot = _leased_slot(state, command.message_id, command.subscriber_id, None)
    if slot is None:
        return REFUSED
    deadline = context.now + command.seconds
    return Decision((e.LeaseExtended(context.now, command.message_id, command.subscriber_id, deadline),), True)


def expire_lease(state: QueueState, slot: Slot, context: Context, reason: str) -> Decision:
    """An open lease ends without an answer: a failed attempt like any other (L1, R1)."""
    lease = slot.lease
    assert lease is not None
    expired = e.LeaseExpired(context.now, slot.message.id, lease.subscriber_id, slot.attempts, reason)
    return Decision((expired, *_after_failure(state, slot, context, reason, None)))


def decide_end_lease(state: QueueState, command: EndLease, context: Context) -> Decision:
    """End an open lease because its process ends, or nobody waits for its message; replies whether there was one (C3).

    It is a failed attempt like any other, but says nothing about the subscriber's health, so no circuit opens,
    and the message need not wait.
    """
    slot = _leased_slot(state, command.message_id, command.subscriber_id, command.attempt)
    if slot is None:
        return REFUSED
    reason = storable(command.reason)
    expired = e.LeaseExpired(context.now, command.message_id, command.subscriber_id, slot.attempts, reason, True)
    return Decision((expired, *_retry_or_end(state, slot, context, reason, 0.0)), True)


def _leased_slot(state: QueueState, message_id: str, subscriber_id: str, attempt: int | None) -> Slot | None:
    message = state.messages.get(message_id)
    slot = message.slot_for(subscriber_id) if message is not None else None
    if slot is None or slot.lease is None or (attempt is not None and attempt != slot.attempts):
        return None
    return slot


def _after_failure(
    state: QueueState, slot: Slot, context: Context, error: str, delay_seconds: float | None
) -> list[e.Event]:
    assert slot.lease is not None
    events = _circuit_after_failure(state, slot.lease.subscriber_id, context)
    events += _retry_or_end(state, slot, context, error, delay_seconds)
    return events


def _circuit_after_failure(state: QueueState, subscriber_id: str, context: Context) -> list[e.Event]:
    """Open the circuit of a subscriber whose failures in a row reach the threshold, or whose probe failed (R3)."""
    configuration = state.configuration
    threshold = configuration.circuit_breaker_failure_threshold
    subscriber = state.subscribers.get(subscriber_id)
    if threshold is None or subscriber is None or not subscriber.present:
        return []
    failures = subscriber.failures + 1
    trips = subscriber.circuit is CircuitState.HALF_OPEN or (
        subscriber.circuit is CircuitState.CLOSED and failures >= threshold
    )
    if not trips:
        return []
    until = context.now + configuration.circuit_breaker_recovery_seconds
    return [e.CircuitOpened(context.now, subscriber_id, failures, until)]


def _retry_or_end(
    state: QueueState, slot: Slot, context: Context, error: str, delay_seconds: float | None
) -> list[e.Event]:
    message = slot.message
    if slot.attempts < message.max_attempts:
        if delay_seconds is None:
            delay_seconds = backoff_seconds(state.configuration, message.id, slot.attempts)
        return [e.MessageRequeued(context.now, message.id, context.now + delay_seconds, slot.subscriber_id)]
    if message.members is None:
        reason = f"max retries exceeded: {slot.attempts} of {message.max_attempts} attempts failed; last error: {error}"
        return [end_of_attempts(state, message, context, reason, error, slot)]
    return audience_outcome(
        state,
        message,
        context,
        acknowledgments=message.acknowledgments,
        exhausted=message.exhausted + 1,
        members=len(message.members),
        slot=slot,
        error=error,
    )


def audience_outcome(
    state: QueueState,
    message: Message,
    context: Context,
    *,
    acknowledgments: int,
    exhausted: int,
    members: int,
    slot: Slot,
    error: str | None = None,
) -> list[e.Event]:
    """How a broadcast or quorum message ends with these counts; no events while somebody may still answer.

    ``slot`` is the one that brought the counts about; ``error`` is what its last attempt said, or None where it
    acknowledged or left.
    """
    now = context.now
    # Who has left is not in the audience any more when the message ends, and its attempts are not the message's.
    gone = slot if message.members is not None and members < len(message.members) else None
    if message.guarantee is DeliveryGuarantee.QUORUM:
        if acknowledgments >= message.required:
            return [e.MessageCompleted(now, message.id)]
        if acknowledgments + exhausted < members or not members:
            return []
        missing = f"quorum not reached: {acknowledgments} of {message.required} acknowledgments"
        if exhausted:
            failed, error = _last_failure(message, slot, error)
            reason = f"{missing}; {exhausted} of {members} subscribers used up their attempts; last error: {error}"
            return [end_of_attempts(state, message, context, reason, error, failed, gone)]
        return quorum_missed(state, message, context, acknowledgments, gone)
    if acknowledgments + exhausted < members or not members:
        return []
    if not exhausted:
        return [e.MessageCompleted(now, message.id)]
    failed, error = _last_failure(message, slot, error)
    reason = f"max retries exceeded for {exhausted} of {members} subscribers; last error: {error}"
    return [end_of_attempts(state, message, context, reason, error, failed, gone)]


def _last_failure(message: Message, slot: Slot, error: str | None) -> tuple[Slot, str | None]:
    """Whose failure the dead letter tells of: this slot's, or that of another which used up its attempts (D1)."""
    if error is not None:
        return slot, error
    failed = next(other for other in message.slots() if other.exhausted and other is not slot)
    return failed, failed.last_error


def quorum_missed(
    state: QueueState, message: Message, context: Context, acknowledgments: int, gone: Slot | None = None
) -> list[e.Event]:
    """Everybody acknowledged and it is not enough: wait for newcomers, as often as there are attempts (G4).

    Newcomers who answer, or leave, before such a wait is over do not end it, nor do they make another one of it.
    """
    until = message.slot.due_at
    if until <= context.now:
        if message.missed >= message.max_attempts:
            reason = (
                f"quorum not reached: {acknowledgments} of {message.required} acknowledgments, and no other subscriber "
                f"came in {message.missed} acknowledgment timeouts"
            )
            return [end_of_attempts(state, message, context, reason, None, message.slot, gone)]
        until = context.now + (
            message.event.options.acknowledgment_timeout_seconds
            or state.configuration.default_acknowledgment_timeout_seconds
        )
    return [e.QuorumMissed(context.now, message.id, acknowledgments, message.required, until)]


def end_of_attempts(
    state: QueueState,
    message: Message,
    context: Context,
    reason: str,
    error: str | None,
    last: Slot,
    gone: Slot | None = None,
) -> e.MessageDeadLettered | e.MessageFailed:
    """The message is dead-lettered, or failed where the dead letter queue is disabled (D1).

    The attempts are the most that a member of its audience had, without the one that leaves with this (``gone``).
    """
    event_type = e.MessageDeadLettered if state.configuration.enable_dead_letter_queue else e.MessageFailed
    attempts = max((slot.attempts for slot in message.slots() if slot is not gone), default=0)
    return event_type(context.now, message.id, reason, error, attempts, last.last_subscriber)


def backoff_seconds(configuration: QueueConfiguration, message_id: str, attempts: int) -> float:
    """Wait before the next attempt (R2): exponential with a cap, less a seeded random share of ``retry_jitter``.

    The same seed, message and attempt give the same wait.
    """
    exponent = min(attempts - 1, 1000)
    try:
        grown = configuration.retry_backoff_seconds * configuration.retry_backoff_multiplier**exponent
    except OverflowError:
        grown = configuration.retry_backoff_max_seconds if configuration.retry_backoff_seconds else 0.0
    capped = min(grown, configuration.retry_backoff_max_seconds)
    source = f"{configuration.random_seed}:{message_id}:{attempts}".encode()
    share = int.from_bytes(blake2b(source, digest_size=8).digest()) / 2**64
    return capped * (1.0 - configuration.retry_jitter * share)
