"""Decisions about sends: accept or reject, deduplicate, bound (SEMANTICS S1-S5, G1, U1, C1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import attrs

from mpreg_mq._validation import storable
from mpreg_mq.actors.commands import RecordRejection, Send, SendBatch, SendEach
from mpreg_mq.actors.decider.decision import NOTHING, WAIT_FOR_ROOM, Context, Decision, accepted, rejected
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import (
    DEFAULT_OPTIONS,
    DeliveryResult,
    MessageId,
    MessageOptions,
    OverflowPolicy,
    RejectionReason,
)
from mpreg_mq.options import delay_problem
from mpreg_mq.projections import QueueState

NOBODY: frozenset[str] = frozenset()


@attrs.define
class _Batch:
    """What the sends before this one in the same commit have taken: places, keys and sequence numbers."""

    accepted: list[str] = attrs.field(factory=list)
    keys: dict[str, str] = attrs.field(factory=dict)
    dropped: int = 0
    oldest: Iterator[str] | None = None

    def drop_oldest(self, state: QueueState) -> str:
        """The oldest pending message that this commit has not dropped yet; its own are the youngest."""
        if self.oldest is None:
            self.oldest = chain((message.id for message in state.messages.pending_by_age()), self.accepted)
        self.dropped += 1
        return next(self.oldest)


def _reject(
    topic: str, reason: RejectionReason, detail: str, context: Context
) -> tuple[tuple[e.Event, ...], DeliveryResult]:
    return (
        (e.MessageRejected(context.now, topic, reason, detail),),
        rejected(reason, detail, context.now),
    )


def _refusal(
    state: QueueState, send: Send, context: Context, keys: dict[str, str]
) -> tuple[tuple[e.Event, ...], DeliveryResult] | None:
    """Events and result of a send that must be refused whatever room there is; None if it may be accepted."""
    configuration = state.configuration
    beyond = limits_problem(configuration, send.payload, send.options)
    if beyond is not None:
        return _reject(send.topic, *beyond, context)
    key = send.fingerprint
    if key is not None:
        holder = keys.get(key) or state.deduplication.holder(key, context.now)
        if holder is not None:
            detail = (
                f"Duplicate message within deduplication window: the key belongs to message {holder}, sent less than "
                f"{configuration.deduplication_window_seconds:g} s ago"
            )
            return (
                (e.DuplicateRejected(context.now, send.topic, key, holder),),
                rejected(RejectionReason.DUPLICATE, detail, context.now, holder, configuration.name),
            )
        limit = configuration.max_deduplication_keys
        window = state.deduplication
        if len(window) + len(keys) >= limit and window.live_count(context.now) + len(keys) >= limit:
            detail = (
                f"the deduplication table holds max_deduplication_keys={limit} keys; "
                "shorten deduplication_window_seconds or raise the limit"
            )
            return _reject(send.topic, RejectionReason.DEDUPLICATION_TABLE_FULL, detail, context)
    return None


def limits_problem(
    configuration: QueueConfiguration, payload: bytes, options: MessageOptions
) -> tuple[RejectionReason, str] | None:
    """Why a message is beyond the limits of this queue (S2); None where it is not."""
    size = len(payload)
    if size > configuration.max_payload_bytes:
        detail = (
            f"payload is {size} bytes encoded, expected at most max_payload_bytes={configuration.max_payload_bytes}; "
            "send a reference to the data instead, or raise the limit"
        )
        return RejectionReason.PAYLOAD_TOO_LARGE, detail
    problem = None if options is DEFAULT_OPTIONS else _options_problem(configuration, options)
    return None if problem is None else (RejectionReason.INVALID_OPTION, problem)


def _options_problem(configuration: QueueConfiguration, options: MessageOptions) -> str | None:
    """What is wrong with options for this queue, whose values are in range for any, or None."""
    if options.headers is not None:
        limit = configuration.max_headers_bytes
        headers_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in options.headers.items())
        if headers_bytes > limit:
            return f"headers are {headers_bytes} bytes, expected at most max_headers_bytes={limit}"
    if (options.required_acknowledgments or 1) > configuration.max_subscribers:
        return (
            f"required_acknowledgments is {options.required_acknowledgments}, but the queue can have no more than "
            f"max_subscribers={configuration.max_subscribers} subscribers, so the quorum would never come"
        )
    return None


def _admit(
    state: QueueState, send: Send, context: Context, batch: _Batch
) -> tuple[tuple[e.Event, ...], DeliveryResult | object]:
    refusal = _refusal(state, send, context, batch.keys)
    if refusal is not None:
        return refusal
    configuration = state.configuration
    messages = state.messages
    events: tuple[e.Event, ...] = ()
    pending = messages.pending_count + len(batch.accepted) - batch.dropped
    if pending >= configuration.max_size:
        policy = configuration.overflow_policy
        if policy is OverflowPolicy.WAIT:
            return (), WAIT_FOR_ROOM
        if policy is OverflowPolicy.REJECT:
            detail = (
                f"Queue {configuration.name!r} at maximum capacity: {pending} messages are pending, "
                f"max_size={configuration.max_size}; consume faster, raise max_size or choose another overflow_policy"
            )
            return _reject(send.topic, RejectionReason.CAPACITY, detail, context)
        # More than one where the limit was higher before, or leases have given messages back.
        beyond = pending - configuration.max_size
        events = tuple(e.MessageDropped(context.now, batch.drop_oldest(state)) for _ in range(beyond + 1))
    message_id = context.message_id(messages.next_seq + len(batch.accepted))
    batch.accepted.append(message_id)
    if send.fingerprint is not None:
        batch.keys[send.fingerprint] = message_id
    enqueued = e.MessageEnqueued(
        context.now, message_id, send.topic, send.payload, send.guarantee, send.options, send.fingerprint
    )
    return (*events, enqueued), accepted(message_id, context.now, configuration.name)


def decide_send(state: QueueState, send: Send, context: Context) -> Decision:
    """Accept or reject one message; replies a :class:`DeliveryResult`, or WAIT_FOR_ROOM.

    O(log n); where it drops the oldest pending messages, also the leased messages that are older than those.
    """
    messages = state.messages
    configuration = state.configuration
    if (
        send.options is DEFAULT_OPTIONS
        and send.fingerprint is None
        and len(send.payload) <= configuration.max_payload_bytes
        and messages.pending_count < configuration.max_size
    ):
        # What most sends are; the rules that need a closer look have nothing to say here.
        now = context.now
        message_id = f"{messages.next_seq}-{context.run}"
        enqueued = e.MessageEnqueued(now, message_id, send.topic, send.payload, send.guarantee)
        result = DeliveryResult(True, MessageId(message_id, now, configuration.name), NOBODY, NOBODY, None, now)
        return Decision((enqueued,), result)
    events, reply = _admit(state, send, context, _Batch())
    return Decision(events, reply)


def _plainly(
    state: QueueState, sends: Sequence[Send], context: Context
) -> tuple[list[e.MessageEnqueued], list[DeliveryResult]]:
    """Accept the first of several messages, as far as each is what most sends are: see :func:`decide_send`."""
    events: list[e.MessageEnqueued] = []
    results: list[DeliveryResult] = []
    messages, configuration, now, run = state.messages, state.configuration, context.now, context.run
    name, most_bytes = configuration.name, configuration.max_payload_bytes
    room = configuration.max_size - messages.pending_count
    for seq, send in enumerate(sends[:room] if room > 0 else (), messages.next_seq):
        payload = send.payload
        if send.options is not DEFAULT_OPTIONS or send.fingerprint is not None or len(payload) > most_bytes:
            break
        message_id = f"{seq}-{run}"
        events.append(e.MessageEnqueued(now, message_id, send.topic, payload, send.guarantee))
        results.append(DeliveryResult(True, MessageId(message_id, now, name), NOBODY, NOBODY, None, now))
    return events, results


def decide_send_each(state: QueueState, command: SendEach, context: Context) -> Decision:
    """Accept the first messages, as :func:`decide_send` would one after another, as far as they are plain and there is
    room; replies their results. O(1) each.
    """
    events, results = _plainly(state, command.sends, context)
    return Decision(tuple(events), results)


def decide_send_batch(state: QueueState, command: SendBatch, context: Context) -> Decision:
    """Accept or reject each message of a batch, in order; replies the list of results (S5).

    A batch never waits for room: under the WAIT policy what does not fit is rejected for capacity.
    """
    plain, results = _plainly(state, command.sends, context)
    events: list[e.Event] = [*plain]
    if len(results) == len(command.sends):
        return Decision(tuple(events), results)
    batch = _Batch([event.message_id for event in plain])
    for send in command.sends[len(results) :]:
        produced, result = _admit(state, send, context, batch)
        if not isinstance(result, DeliveryResult):
            detail = f"Queue {state.configuration.name!r} at maximum capacity; a batch does not wait for room"
            produced, result = _reject(send.topic, RejectionReason.CAPACITY, detail, context)
        events.extend(produced)
        results.append(result)
    return Decision(tuple(events), results)


def decide_wait_over(state: QueueState, send: Send, context: Context) -> Decision:
    """A send waited for room as long as the queue allows, and is rejected (C1)."""
    configuration = state.configuration
    detail = (
        f"Queue {configuration.name!r} at maximum capacity: no room within "
        f"overflow_wait_seconds={configuration.overflow_wait_seconds:g}, max_size={configuration.max_size}"
    )
    events, result = _reject(send.topic, RejectionReason.CAPACITY, detail, context)
    return Decision(events, result)


def decide_fire_and_forget(state: QueueState, send: Send, context: Context) -> Decision:
    """Refuse a fire-and-forget send, or let it go: then there are no events and no reply yet (G1).

    Capacity does not matter, because such a message is never pending.
    """
    problem = delay_problem(send.guarantee, send.options)
    if problem is not None:
        return Decision(*_reject(send.topic, RejectionReason.INVALID_OPTION, problem, context))
    refusal = _refusal(state, send, context, {})
    return NOTHING if refusal is None else Decision(*refusal)


def record_fire_and_forget(
    send: Send,
    context: Context,
    id_: MessageId,
    delivered_to: tuple[str, ...],
    failed: tuple[str, ...],
) -> tuple[e.FireAndForgetSent, DeliveryResult]:
    """The one attempt was made: its event, and the result, which is a success even without subscribers (G1).

    ``id_`` is what the copies that were delivered have.
    """
    now = context.now
    event = e.FireAndForgetSent(now, id_.id, send.topic, delivered_to, failed, send.fingerprint)
    # An empty set would be the same one each time, but not be had for nothing.
    who_failed = frozenset(failed) if failed else NOBODY
    return event, DeliveryResult(True, id_, frozenset(delivered_to), who_failed, None, now)


def decide_rejection(state: QueueState, command: RecordRejection, context: Context) -> Decision:
    """Log a send that was refused before it became a command; replies the result (S2)."""
    return Decision(*_reject(storable(command.topic), command.reason, storable(command.detail), context))
