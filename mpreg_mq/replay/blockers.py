"""What keeps an unfinished message from moving, read off the state that the queue decides from.

A message moves when it is delivered, enters an audience, or ends. Nothing here repeats a rule: who matches, who can
take another message, who leads a group and what waits for a moment are asked of the projections that the decider
asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import attrs

from mpreg_mq.model import CircuitState
from mpreg_mq.projections import Message, QueueState, Slot, Subscriber
from mpreg_mq.projections.deadlines import DeadlineKind
from mpreg_mq.replay.formats import format_seconds, format_time, plural, some
from mpreg_mq.replay.patterns import mismatch, nearest
from mpreg_mq.replay.sightings import Departed, Sightings
from mpreg_mq.topics import matches


class BlockerKind(Enum):
    """What keeps a message from moving, and what removes it."""

    PAUSED = "paused"
    """The queue is paused: resume it."""
    GROUP = "group"
    """Another message of its group goes first: finish that one."""
    DELAYED = "delayed"
    """Its delay has not passed: wait."""
    BACKOFF = "backoff"
    """It waits between two attempts: wait."""
    LEASED = "leased"
    """A subscriber has it: acknowledge, give it back, or wait for the end of the lease."""
    NO_SUBSCRIBER = "no_subscriber"
    """Nobody matches its topic: subscribe."""
    MEMBER_AWAY = "member_away"
    """A member of its audience is not subscribed now: let it come back, or unsubscribe it."""
    MAX_IN_FLIGHT = "max_in_flight"
    """Who could take it has all it may have: settle one of those."""
    CIRCUIT_OPEN = "circuit_open"
    """The breaker of who could take it is open: wait for its recovery time."""
    CIRCUIT_PROBING = "circuit_probing"
    """The breaker of who could take it is half open, and another message probes it: settle that one."""
    NOT_FETCHED = "not_fetched"
    """Who could take it fetches, and did not: receive."""
    QUORUM_SHORT = "quorum_short"
    """Everybody acknowledged and it is not enough: let others subscribe, or wait."""
    TTL_PASSED = "ttl_passed"
    """It is past its time to live and ends with the leases of others: settle those."""


@attrs.frozen
class Blocker:
    """One thing that keeps a message from moving, in words and as data.

    ``message_ids`` are the messages that have to be settled to remove it, ``until`` when time removes it.
    """

    kind: BlockerKind
    text: str
    subscriber_id: str | None = None
    message_ids: tuple[str, ...] = ()
    until: float | None = None


@attrs.frozen
class Way:
    """One way for a message to move: through this subscriber (None: any), once all these are removed."""

    subscriber_id: str | None
    blockers: tuple[Blocker, ...]


def common_blockers(state: QueueState, message: Message, seen: Sightings, now: float) -> tuple[Blocker, ...]:
    """What keeps the whole message, whoever might take it."""
    found = []
    if state.paused:
        at = seen.paused_at
        text = "the queue is paused" + (f" since {format_time(at)} ({_ago(at, now)})" if at is not None else "")
        found.append(Blocker(BlockerKind.PAUSED, text))
    head = None if message.group_id is None else state.messages.group_head(message.group_id)
    if head is not None and head is not message:
        text = f"held back: group {message.group_id} has {head.id} {_where(head)}"
        found.append(Blocker(BlockerKind.GROUP, text, message_ids=(head.id,)))
    return tuple(found)


def ways(state: QueueState, message: Message, seen: Sightings, now: float) -> tuple[Way, ...]:
    """The ways in which the message could move, each with what stands in it; one that is free has no blockers."""
    if message.members is None:
        return tuple(_ways_of_slot(state, message.slot, seen, now))
    found = []
    if message.slot.timer is not None:
        found.append(Way(None, (_quorum_short(message, now),)))
    for slot in message.members.values():
        if not slot.acknowledged and not slot.exhausted:
            found += _ways_of_slot(state, slot, seen, now)
    return tuple(found)


def _ways_of_slot(state: QueueState, slot: Slot, seen: Sightings, now: float) -> Iterator[Way]:
    lease = slot.lease
    if lease is not None:
        text = (
            f"in flight: leased to {lease.subscriber_id} (attempt {lease.attempt}), "
            f"{_until(slot.deadline, now)}, and not answered"
        )
        blocker = Blocker(BlockerKind.LEASED, text, lease.subscriber_id, (slot.message.id,), slot.deadline)
        yield Way(lease.subscriber_id, (blocker,))
        return
    waits = tuple(_waits(slot, now))
    takers = tuple(_takers(state, slot, seen, now))
    if not takers:
        yield Way(slot.subscriber_id, (*waits, _nobody(state, slot, seen, now)))
    for subscriber, busy in takers:
        yield Way(subscriber.id, waits if busy is None else (*waits, busy))


def _waits(slot: Slot, now: float) -> Iterator[Blocker]:
    message = slot.message
    if slot.timer is not None and slot.timer.kind is DeadlineKind.DUE and slot.due_at > now:
        if slot.attempts:
            text = (
                f"waiting: backoff {_until(slot.due_at, now)}, after attempt {slot.attempts} of "
                f"{message.max_attempts} failed with {slot.last_error}"
            )
            yield Blocker(BlockerKind.BACKOFF, text, slot.subscriber_id, until=slot.due_at)
        else:
            text = f"waiting: delayed {_until(slot.due_at, now)}"
            yield Blocker(BlockerKind.DELAYED, text, slot.subscriber_id, until=slot.due_at)
    elif message.live and message.expires_at is not None and message.expires_at <= now:
        holders = [other for other in message.slots() if other.lease is not None]
        text = (
            f"past its time to live since {format_time(message.expires_at)}: it expires when "
            f"{some([other.lease.subscriber_id for other in holders if other.lease is not None])} settled it"
        )
        yield Blocker(BlockerKind.TTL_PASSED, text, None, (message.id,), min(other.deadline for other in holders))


def _takers(state: QueueState, slot: Slot, seen: Sightings, now: float) -> Iterator[tuple[Subscriber, Blocker | None]]:
    """Who may take the slot, each with what keeps it from doing so; None where nothing does."""
    candidates = state.subscribers.audience(slot.message.topic) if slot.subscriber_id is None else (slot.subscriber_id,)
    for subscriber_id in candidates:
        subscriber = state.subscribers.get(subscriber_id)
        if subscriber is None or not subscriber.present:
            continue
        if not subscriber.can_take():
            yield subscriber, _busy(subscriber, seen, now)
        elif subscriber.pull:
            ahead = _ahead(state, slot, subscriber)
            text = f"waits to be fetched: {subscriber.id} pulls, and did not ask"
            if ahead:
                text += f"; {plural(len(ahead), 'message')} before it"
            yield subscriber, Blocker(BlockerKind.NOT_FETCHED, text, subscriber.id, ahead)
        else:
            yield subscriber, None


def _ahead(state: QueueState, slot: Slot, subscriber: Subscriber) -> tuple[str, ...]:
    found = []
    for other in state.messages.lanes.ready_for(subscriber.id):
        if other is slot:
            break
        found.append(other.message.id)
    return tuple(found)


def _busy(subscriber: Subscriber, seen: Sightings, now: float) -> Blocker:
    name = subscriber.id
    held = tuple(sorted(subscriber.held))
    if len(held) >= subscriber.max_in_flight:
        text = f"{name} has {len(held)} of at most {subscriber.max_in_flight} messages in flight: {some(held)}"
        return Blocker(BlockerKind.MAX_IN_FLIGHT, text, name, held)
    if subscriber.circuit is CircuitState.OPEN:
        opened = seen.circuit_opened_at.get(name)
        since = "" if opened is None else f" since {format_time(opened)}"
        text = (
            f"breaker of {name} open{since} "
            f"after {plural(subscriber.failures, 'failure')} in a row, {_until(subscriber.open_until, now)}"
        )
        if name in seen.last_error:
            text += f"; last error {seen.last_error[name]}"
        return Blocker(BlockerKind.CIRCUIT_OPEN, text, name, until=subscriber.open_until)
    assert subscriber.probe is not None, "who is present, has room and a closed circuit can take a message"
    text = f"breaker of {name} half open: {subscriber.probe} probes it, and only that"
    return Blocker(BlockerKind.CIRCUIT_PROBING, text, name, (subscriber.probe,))


def _nobody(state: QueueState, slot: Slot, seen: Sightings, now: float) -> Blocker:
    topic = slot.message.topic
    member = slot.subscriber_id
    if member is not None:
        left = [departed for departed in seen.departed.values() if departed.subscriber_id == member]
        since = f" since {format_time(left[-1].at)}, when its process ended" if left else ""
        text = f"{member} is in its audience and away{since}; its place waits until it subscribes again"
        return Blocker(BlockerKind.MEMBER_AWAY, text, member)
    present = {joined.topic_pattern for subscriber in state.subscribers for joined in subscriber.subscriptions.values()}
    text = f"pending: no subscriber matches {topic}"
    near = nearest(present, topic)
    if near is not None:
        text += f"; nearest pattern {near}: {mismatch(near, topic)}"
    else:
        text += "; nobody is subscribed"
    left = _who_matched(seen, topic)
    if left:
        how = "unsubscribed" if left[-1].unsubscribed else "left with its process"
        text += f"; {left[-1].subscriber_id} ({left[-1].topic_pattern}) {how} {_ago(left[-1].at, now)}"
    return Blocker(BlockerKind.NO_SUBSCRIBER, text)


def _who_matched(seen: Sightings, topic: str) -> list[Departed]:
    return [departed for departed in seen.departed.values() if matches(departed.topic_pattern, topic)]


def _quorum_short(message: Message, now: float) -> Blocker:
    text = (
        f"quorum short: {message.acknowledgments} of {message.required} acknowledgments, and everybody who matches "
        f"has answered; waits for newcomers {_until(message.slot.due_at, now)}"
    )
    return Blocker(BlockerKind.QUORUM_SHORT, text, until=message.slot.due_at)


def _where(message: Message) -> str:
    if message.live:
        return "in flight"
    return f"before it, {'waiting' if message.slot.timer is not None else 'pending'}"


def _until(moment: float, now: float) -> str:
    return f"until {format_time(moment)} ({f'in {format_seconds(moment - now)}' if moment > now else 'now'})"


def _ago(moment: float, now: float) -> str:
    return f"{format_seconds(max(0.0, now - moment))} ago"
