"""The plain case of the commonest events: conditions that tell at one look that no rule has anything to say.

A message that is accepted, delivered for the first time and acknowledged concerns most rules and breaks none of them.
Instead of asking each rule, the checker asks one function for such an event; where it answers True, the rules of
:data:`COVERED` are not asked. An answer of False says nothing: every rule is asked then. So a condition may be
stricter than the rules are, but never weaker: each rule of ``COVERED`` would report nothing, expect nothing and keep
nothing of an event for which the answer is True.

Like :meth:`QueueFacts.focus`, each function finds what the event is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mpreg_mq.events import types as e
from mpreg_mq.invariants import rules
from mpreg_mq.invariants.facts import QueueFacts
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.invariants.rules.sending import headers_bytes
from mpreg_mq.invariants.rules.settling import ROUNDING_SECONDS
from mpreg_mq.invariants.subscribers import pattern_matches
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from mpreg_mq.topics import topic_problem

_CLOSED = CircuitState.CLOSED
_QUORUM = DeliveryGuarantee.QUORUM
_BROADCAST = DeliveryGuarantee.BROADCAST
_FIRE_AND_FORGET = DeliveryGuarantee.FIRE_AND_FORGET


def _enqueued(facts: QueueFacts, event: e.MessageEnqueued) -> bool:
    """It keeps the limits (S2), there is room for it (C1), and it is no dead letter that comes again (D1)."""
    configuration = facts.configuration
    return (
        configuration is not None
        and facts.deleted is None
        and event.redriven_from is None
        and event.guarantee is not _FIRE_AND_FORGET
        and len(event.payload) <= configuration.max_payload_bytes
        and len(facts.messages) - facts.leased < configuration.max_size
        and topic_problem(event.topic) is None
        and ((headers := event.options.headers) is None or headers_bytes(headers) <= configuration.max_headers_bytes)
    )


def _audience_fixed(facts: QueueFacts, event: e.AudienceFixed) -> bool:
    """The first audience of a message, and just those who match (G2, G3, G4)."""
    message = facts.message = facts.messages.get(event.message_id)
    facts.subscriber = None
    if message is None:
        facts.slot = None
        return False
    facts.slot = message.slot
    if message.alone or message.members is not None:
        return False
    named = event.subscriber_ids
    matching = facts.subscribers.audience(message.event.topic)
    return bool(named) and len(named) == len(matching) and matching == frozenset(named)


def _delivered(facts: QueueFacts, event: e.MessageDelivered) -> bool:
    """The next attempt of a message that is due, at a subscriber with room for it, whose turn it is.

    It is of no group (O1), and neither leased (L1) nor failed without a due time (R2).
    """
    message = facts.message = facts.messages.get(event.message_id)
    subscriber_id = event.subscriber_id
    subscriber = facts.subscriber = facts.subscribers.by_id.get(subscriber_id)
    if message is None:
        facts.slot = None
        return False
    members = message.members
    slot = facts.slot = message.slot if members is None else members.get(subscriber_id)
    configuration = facts.configuration
    if slot is None or subscriber is None or configuration is None:
        return False
    at = event.at
    attempt = event.attempt
    if (
        message.group_id is not None
        or facts.paused is not None
        or slot.lease is not None
        or slot.failure is not None
        or attempt != slot.attempts + 1
        or attempt > message.max_attempts
        or at < slot.due_at
        or at < message.due_at
        or (message.expires_at is not None and at >= message.expires_at)
        or subscriber.circuit is not _CLOSED
        or len(subscriber.held) >= subscriber.max_in_flight
    ):
        return False
    if event.pull:
        if event.deadline <= at:
            return False
    else:
        seconds = message.timeout_seconds or configuration.default_acknowledgment_timeout_seconds
        if not -ROUNDING_SECONDS <= at + seconds - event.deadline <= ROUNDING_SECONDS:
            return False
    joined: Any = subscriber.subscriptions.get(event.subscription_id)
    topic = message.event.topic
    if joined is None or not pattern_matches(joined.event.topic_pattern, topic):
        return False
    if message.alone:
        if not event.pull and facts.subscribers.less_busy(subscriber, topic) is not None:
            return False
    elif (
        members is None
        or slot.acknowledged is not None
        or (message.event.guarantee is _QUORUM and not facts.subscribers.audience(topic) <= members.keys())
    ):
        return False
    if not slot.token:
        return True
    ready = facts.ready
    ready.advance(at)
    return ready.overtaken(slot, subscriber_id, at) is None


def _acknowledged(facts: QueueFacts, event: e.MessageAcknowledged) -> bool:
    """The first acknowledgment of who was given it last (L2) and has its circuit closed (R3); of an audience, not the
    last one that is needed."""
    message = facts.message = facts.messages.get(event.message_id)
    subscriber_id = event.subscriber_id
    subscriber = facts.subscriber = facts.subscribers.by_id.get(subscriber_id)
    if message is None:
        facts.slot = None
        return False
    members = message.members
    slot = facts.slot = message.slot if members is None else members.get(subscriber_id)
    if slot is None or slot.acknowledged is not None:
        return False
    if subscriber is not None and subscriber.circuit is not _CLOSED:
        return False
    delivered: Any = slot.delivered
    if delivered is None or delivered.event.subscriber_id != subscriber_id:
        return False
    if message.alone:
        return event.completes
    return (
        not event.completes
        and members is not None
        and message.answered + 1 < len(members)
        and (message.event.guarantee is not _QUORUM or message.acknowledgments + 1 < message.required)
    )


def _completed(facts: QueueFacts, event: e.MessageCompleted) -> bool:
    """A message with an audience has the acknowledgments that it needs (G3, G4)."""
    message = facts.message = facts.messages.get(event.message_id)
    facts.subscriber = None
    if message is None:
        facts.slot = None
        return False
    facts.slot = message.slot
    members = message.members
    if not members:
        return False
    guarantee = message.event.guarantee
    if guarantee is _BROADCAST:
        return message.acknowledgments == len(members)
    return guarantee is _QUORUM and message.acknowledgments >= message.required


PLAIN: Mapping[type[e.Event], Callable[[QueueFacts, Any], bool]] = {
    e.MessageEnqueued: _enqueued,
    e.AudienceFixed: _audience_fixed,
    e.MessageDelivered: _delivered,
    e.MessageAcknowledged: _acknowledged,
    e.MessageCompleted: _completed,
}
"""For each of these event types, whether an event is plain."""

_TO_AUDIENCES: frozenset[type[Rule]] = frozenset({rules.Broadcast, rules.Quorum})
_BY_GUARANTEE = _TO_AUDIENCES | {rules.CompetingConsumers}

COVERED: Mapping[type[e.Event], frozenset[type[Rule]]] = {
    # Acceptance and deduplication keep something of each message, so they are asked about each.
    e.MessageEnqueued: frozenset({rules.Limits, rules.DeadLetters, rules.Capacity, rules.Lifecycle}),
    e.AudienceFixed: _BY_GUARANTEE | {rules.Lifecycle},
    e.MessageDelivered: _BY_GUARANTEE
    | {
        rules.Topics,
        rules.Fifo,
        rules.Priority,
        rules.Delay,
        rules.TimeToLive,
        rules.Leases,
        rules.Attempts,
        rules.Backoff,
        rules.Circuit,
        rules.InFlight,
        rules.Pause,
        rules.Lifecycle,
    },
    e.MessageAcknowledged: _TO_AUDIENCES | {rules.Acknowledgments, rules.Circuit, rules.Accounts, rules.Lifecycle},
    e.MessageCompleted: _BY_GUARANTEE | {rules.Accounts},
}
"""The rules that have nothing to say about a plain event. These very classes: a rule derived from one is asked."""
