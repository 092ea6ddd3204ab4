"""Decisions about the queue itself, its subscriptions and its dead letters (SEMANTICS G3, D1, C3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from mpreg_mq.actors.commands import (
    AcceptRedriven,
    Delete,
    Detach,
    Open,
    Pause,
    Purge,
    PurgeDeadLetters,
    RecordRedriven,
    Redrive,
    Resume,
    Subscribe,
    Unsubscribe,
)
from mpreg_mq.actors.decider.decision import Context, Decision
from mpreg_mq.actors.decider.sending import limits_problem
from mpreg_mq.actors.decider.settling import audience_outcome
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from mpreg_mq.projections import DeadEntry, Message, QueueState
from mpreg_mq.topics import matches

UNCHANGED = Decision(reply=False)


def decide_subscribe(state: QueueState, command: Subscribe, context: Context) -> Decision:
    """Start a subscription, which enters the audience of the open quorums it matches (G4); replies its id.

    Raises:
        InvalidOptionError: the queue has ``max_subscribers`` subscriptions, the subscription exists, or the
            subscriber would both be called and pull: a message could then not tell which way to go.
    """
    configuration = state.configuration
    subscriber = state.subscribers.get(command.subscriber_id)
    pull = command.callback is None
    if subscriber is not None and subscriber.present and subscriber.pull is not pull:
        raise InvalidOptionError(
            f"subscriber {command.subscriber_id!r} subscribed {'without' if subscriber.pull else 'with'} a callback, "
            f"got a subscription {'without' if pull else 'with'} one; give the other way another subscriber_id"
        )
    if state.subscribers.subscription(command.subscription_id) is not None:
        raise InvalidOptionError(
            f"subscription_id: got {command.subscription_id!r}, which exists; expected a new one for each subscription"
        )
    if len(state.subscribers) >= configuration.max_subscribers:
        raise InvalidOptionError(
            f"queue {configuration.name!r} has max_subscribers={configuration.max_subscribers} subscriptions; "
            "unsubscribe somebody or raise the limit"
        )
    joined = e.SubscriberJoined(
        context.now,
        command.subscriber_id,
        command.subscription_id,
        command.topic_pattern,
        command.max_in_flight or (1 if command.blocking else configuration.default_max_in_flight),
        pull,
        command.auto_acknowledge,
        dict(command.metadata),
    )
    admitted = (
        e.AudienceFixed(context.now, message.id, (command.subscriber_id,))
        for message in _with_audience(state)
        if message.guarantee is DeliveryGuarantee.QUORUM
        and message.members is not None
        and command.subscriber_id not in message.members
        and matches(command.topic_pattern, message.topic)
    )
    return Decision((joined, *admitted), command.subscription_id)


def _with_audience(state: QueueState) -> list[Message]:
    """Messages whose audience is fixed, in order of acceptance, whether or not a snapshot has kept another order."""
    return sorted(state.messages.audiences.values(), key=lambda message: message.seq)


def decide_unsubscribe(state: QueueState, command: Unsubscribe, context: Context) -> Decision:
    """End a subscription; replies whether it existed.

    The subscriber leaves the audiences that it has not acknowledged for and that none of its other subscriptions
    matches, which may complete their messages (G3). Leases of at-least-once messages stay open, so that work in
    progress can be acknowledged.
    """
    subscription = state.subscribers.subscription(command.subscription_id)
    if subscription is None:
        return UNCHANGED
    subscriber = state.subscribers.get(subscription.subscriber_id)
    assert subscriber is not None
    events: list[e.Event] = [e.SubscriberLeft(context.now, subscriber.id, command.subscription_id)]
    others = [
        joined.topic_pattern
        for subscription_id, joined in subscriber.subscriptions.items()
        if subscription_id != command.subscription_id
    ]
    for message in _with_audience(state):
        assert message.members is not None
        slot = message.members.get(subscriber.id)
        if slot is None or slot.acknowledged or any(matches(pattern, message.topic) for pattern in others):
            continue
        events.append(e.AudienceMemberLeft(context.now, message.id, subscriber.id))
        events += audience_outcome(
            state,
            message,
            context,
            acknowledgments=message.acknowledgments,
            exhausted=message.exhausted - slot.exhausted,
            members=len(message.members) - 1,
            slot=slot,
        )
    return Decision(tuple(events), True)


def decide_detach(state: QueueState, command: Detach, context: Context) -> Decision:
    """Subscriptions end with their process; places in audiences wait for the subscribers to come back (C3)."""
    wanted = command.subscription_ids
    events = tuple(
        e.SubscriberLeft(context.now, subscriber.id, subscription_id, False)
        for subscriber in state.subscribers
        for subscription_id, joined in subscriber.subscriptions.items()
        if (not joined.pull if wanted is None else subscription_id in wanted)
    )
    return Decision(events, len(events))


def decide_pause(state: QueueState, command: Pause, context: Context) -> Decision:
    """Stop delivering; replies whether that changed anything."""
    return UNCHANGED if state.paused else Decision((e.QueuePaused(context.now),), True)


def decide_resume(state: QueueState, command: Resume, context: Context) -> Decision:
    """Go on delivering; replies whether that changed anything."""
    return Decision((e.QueueResumed(context.now),), True) if state.paused else UNCHANGED


def decide_purge(state: QueueState, command: Purge, context: Context) -> Decision:
    """Remove every unfinished message, leased ones included; replies how many."""
    ids = tuple(message.id for message in state.messages)
    return Decision((e.MessagesPurged(context.now, ids),), len(ids)) if ids else Decision(reply=0)


def decide_delete(state: QueueState, command: Delete, context: Context) -> Decision:
    """End the queue: what was unfinished is purged, dead letters go with it."""
    purge = decide_purge(state, Purge(), context)
    return Decision((*purge.events, e.QueueDeleted(context.now)), True)


def decide_open(state: QueueState, command: Open, context: Context) -> Decision:
    """Create the queue, or follow another configuration; replies whether it was created.

    Where that has no circuit breakers, what they hold back is given free (R3): nothing would close them any more.
    """
    if not state.created or state.deleted:
        return Decision((e.QueueCreated(context.now, command.configuration.name, command.configuration),), True)
    if command.configuration == state.configuration:
        return UNCHANGED
    events: list[e.Event] = [e.QueueReconfigured(context.now, command.configuration)]
    if command.configuration.circuit_breaker_failure_threshold is None:
        events += [
            e.CircuitClosed(context.now, subscriber.id)
            for subscriber in state.subscribers
            if subscriber.circuit is not CircuitState.CLOSED
        ]
    return Decision(tuple(events), False)


def _chosen(state: QueueState, message_ids: tuple[str, ...] | None) -> list[DeadEntry]:
    if message_ids is None:
        return list(state.dead_letters)
    found = (state.dead_letters.get(message_id) for message_id in dict.fromkeys(message_ids))
    return [entry for entry in found if entry is not None]


def up_to(
    limit: int | None, dead: Iterable[e.MessageEnqueued], configuration: QueueConfiguration
) -> Iterator[e.MessageEnqueued]:
    """The first of dead messages, until ``limit`` of them are within what a queue takes: those that it refuses stay
    where they are, and would be in the way of all others for ever.

    No more than ``limit`` are there to be refused either, which would be recorded of all of them each time.
    """
    within = beyond = 0
    for enqueued in dead:
        if within == limit:
            return
        if limits_problem(configuration, enqueued.payload, enqueued.options) is None:
            within += 1
        elif beyond == limit:
            continue
        else:
            beyond += 1
        yield enqueued


def _accept_again(
    state: QueueState, entries: Iterable[e.MessageEnqueued], source_queue: str, context: Context
) -> Iterator[tuple[str, e.MessageEnqueued | e.MessageRejected]]:
    """The ids of dead messages and their new acceptances, as many as there is room for, or why this queue refuses them.

    They are sends but for their deduplication key, which they do not claim (D1): what is beyond the queue's limits is
    refused as any other (S2), and takes no room.
    """
    configuration, messages = state.configuration, state.messages
    room = max(0, configuration.max_size - messages.pending_count)
    accepted = 0
    for enqueued in entries:
        if accepted == room:
            return
        dead = f"{source_queue}/{enqueued.message_id}"
        beyond = limits_problem(configuration, enqueued.payload, enqueued.options)
        if beyond is not None:
            reason, detail = beyond
            yield (
                enqueued.message_id,
                e.MessageRejected(context.now, enqueued.topic, reason, f"redrive of {dead}: {detail}"),
            )
            continue
        again = msgspec.structs.replace(
            enqueued,
            at=context.now,
            message_id=context.message_id(messages.next_seq + accepted),
            deduplication_key=None,
            redriven_from=dead,
        )
        accepted += 1
        yield enqueued.message_id, again


def decide_redrive(state: QueueState, command: Redrive, context: Context) -> Decision:
    """Accept dead letters again in their own queue, oldest first, while there is room; replies (dead, new) ids (D1)."""
    dead_letters = (entry.enqueued for entry in _chosen(state, command.message_ids))
    chosen = up_to(command.limit, dead_letters, state.configuration)
    name = state.configuration.name
    events: list[e.Event] = []
    pairs: list[tuple[str, str]] = []
    for dead, event in _accept_again(state, chosen, name, context):
        events.append(event)
        if isinstance(event, e.MessageEnqueued):
            events.append(e.DeadLetterRedriven(context.now, dead, event.message_id, name))
            pairs.append((dead, event.message_id))
    return Decision(tuple(events), pairs)


def decide_accept_redriven(state: QueueState, command: AcceptRedriven, context: Context) -> Decision:
    """Accept dead letters of another queue while there is room; replies (dead, new) ids (D1)."""
    again = list(_accept_again(state, command.entries, command.source_queue, context))
    pairs = [(dead, event.message_id) for dead, event in again if isinstance(event, e.MessageEnqueued)]
    return Decision(tuple(event for _, event in again), pairs)


def decide_record_redriven(state: QueueState, command: RecordRedriven, context: Context) -> Decision:
    """Dead letters were accepted by another queue, so they leave this one (D1)."""
    events = tuple(
        e.DeadLetterRedriven(context.now, dead, new, command.target_queue)
        for dead, new in command.pairs
        if state.dead_letters.get(dead) is not None
    )
    return Decision(events, len(events))


def decide_purge_dead_letters(state: QueueState, command: PurgeDeadLetters, context: Context) -> Decision:
    """Remove dead letters; replies how many."""
    ids = tuple(entry.enqueued.message_id for entry in _chosen(state, command.message_ids))
    return Decision((e.DeadLettersPurged(context.now, ids),), len(ids)) if ids else Decision(reply=0)
