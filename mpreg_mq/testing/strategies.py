"""Hypothesis strategies for what queues are made of: topics, payloads, configurations, commands, whole histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import msgspec
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, decide, decide_dispatch, decide_tick
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import recorded
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, OverflowPolicy, QueueType, RejectionReason
from mpreg_mq.payload import encode_payload, fingerprint
from mpreg_mq.projections import QueueState

SEGMENTS = ("a", "b", "c", "order", "user", "eu-1", "ä")
START = 1_000_000.0
_ENCODABLE = st.characters(codec="utf-8")


def topics(max_levels: int = 3) -> st.SearchStrategy[str]:
    """Well-formed topics of few distinct segments, so that they often match."""
    return st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=max_levels).map(".".join)


def patterns(max_levels: int = 3) -> st.SearchStrategy[str]:
    """Well-formed topic patterns: segments, ``*`` and ``#``."""
    return st.lists(st.sampled_from((*SEGMENTS, "*", "*", "#", "#")), min_size=1, max_size=max_levels).map(".".join)


def malformed_topics() -> st.SearchStrategy[Any]:
    """What is no topic: empty or doubled dots, wildcards, spaces, other types."""
    broken = st.sampled_from(("", ".", "a.", ".a", "a..b", "a b", "a.*", "#", "a\n", "x" * 256))
    return st.one_of(broken, st.none(), st.integers(), st.binary(max_size=3))


def payloads(max_leaves: int = 10) -> st.SearchStrategy[Any]:
    """Payloads as they come back from a queue: None, numbers, texts, bytes, lists and string-keyed dictionaries."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(_ENCODABLE, max_size=20)
        | st.binary(max_size=20)
    )
    keys = st.text(_ENCODABLE, max_size=8)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=max_leaves,
    )


def headers() -> st.SearchStrategy[dict[str, str]]:
    """A few headers."""
    texts = st.text(_ENCODABLE, max_size=8)
    return st.dictionaries(texts, texts, max_size=3)


@st.composite
def message_options(draw: st.DrawFn) -> MessageOptions:
    """Options of a send, each often None."""

    def maybe(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | strategy)

    return MessageOptions(
        priority=maybe(st.integers(-3, 9)),
        delay_seconds=maybe(st.sampled_from((0.0, 0.5, 7.0))),
        visibility_timeout_seconds=maybe(st.sampled_from((1.0, 8.0))),
        acknowledgment_timeout_seconds=maybe(st.sampled_from((1.0, 10.0))),
        max_retries=maybe(st.integers(0, 3)),
        required_acknowledgments=maybe(st.integers(1, 3)),
        headers=maybe(headers()),
        message_ttl_seconds=maybe(st.sampled_from((1.0, 12.0))),
        deduplication_id=maybe(st.sampled_from(("k1", "k2"))),
        group_id=maybe(st.sampled_from(("g", "h"))),
    )


@st.composite
def configurations(draw: st.DrawFn, name: str = "q") -> QueueConfiguration:
    """Small configurations, in which what can happen happens soon."""
    return QueueConfiguration(
        name,
        queue_type=draw(st.sampled_from(QueueType)),
        max_size=draw(st.sampled_from((1000, 1000, 5, 2))),
        default_visibility_timeout_seconds=draw(st.sampled_from((8.0, 3.0))),
        default_acknowledgment_timeout_seconds=draw(st.sampled_from((10.0, 4.0))),
        message_ttl_seconds=draw(st.sampled_from((None, None, 12.0))),
        enable_dead_letter_queue=draw(st.sampled_from((True, True, False))),
        dead_letter_max_receives=draw(st.sampled_from((None, None, 2))),
        enable_deduplication=draw(st.booleans()),
        deduplication_window_seconds=draw(st.sampled_from((20.0, 5.0))),
        max_retries=draw(st.integers(0, 3)),
        overflow_policy=draw(st.sampled_from(OverflowPolicy)),
        overflow_wait_seconds=draw(st.sampled_from((0.0, 2.0))),
        retry_backoff_seconds=draw(st.sampled_from((0.1, 0.0, 1.0))),
        retry_jitter=draw(st.sampled_from((0.5, 0.0))),
        circuit_breaker_failure_threshold=draw(st.sampled_from((None, 2, 1))),
        circuit_breaker_recovery_seconds=draw(st.sampled_from((15.0, 2.0))),
        default_max_in_flight=draw(st.sampled_from((100, 2, 1))),
    )


def guarantees(*, fire_and_forget: bool = False) -> st.SearchStrategy[DeliveryGuarantee]:
    """Guarantees; fire-and-forget only where asked for, because it is no command of the decider."""
    kinds = [kind for kind in DeliveryGuarantee if fire_and_forget or kind is not DeliveryGuarantee.FIRE_AND_FORGET]
    return st.sampled_from(kinds)


# --- commands and histories -----------------------------------------------------------------------------------

SUBSCRIBERS = ("r", "s", "t")


def _nothing(message: Any) -> None:
    """Stands for a callback, which the decider never calls."""


@st.composite
def sends(
    draw: st.DrawFn,
    configuration: QueueConfiguration | None = None,
    contents: st.SearchStrategy[Any] | None = None,
) -> c.Send:
    """A send that was checked at the door: it claims a key where the queue deduplicates."""
    topic, payload, options = (
        draw(topics(2)),
        draw(payloads(3) if contents is None else contents),
        draw(message_options()),
    )
    key = None
    if configuration is None or configuration.enable_deduplication:
        key = options.deduplication_id or fingerprint(topic, payload, options.headers)
    elif options.deduplication_id is not None:
        options = attrs.evolve(options, deduplication_id=None)
    return c.Send(topic, encode_payload(payload), draw(guarantees()), options, key)


_ADMINISTRATION = (c.Pause(), c.Resume(), c.Resume(), c.Redrive(), c.PurgeDeadLetters(), c.Purge())
_KINDS = ("send",) * 4 + ("settle",) * 3 + ("receive",) * 2 + ("subscribe", "unsubscribe", "administer")


@st.composite
def commands(draw: st.DrawFn, state: QueueState, number: int) -> Any:
    """Commands for a queue in this state, sensible or not; ``number`` makes new ids distinct."""
    kind = draw(st.sampled_from(_KINDS))
    if kind == "send":
        return draw(sends(state.configuration, st.integers(0, 9)))
    if kind == "administer":
        return draw(st.sampled_from(_ADMINISTRATION))
    if kind == "unsubscribe":
        joined = [key for subscriber in state.subscribers for key in subscriber.subscriptions]
        return c.Unsubscribe(draw(st.sampled_from(joined or ["nobody's"])))
    name = draw(st.sampled_from(SUBSCRIBERS))
    if kind == "receive":
        return c.Receive(name, draw(st.integers(1, 3)), 0.0, draw(st.sampled_from((None, 2.0))))
    if kind == "subscribe":
        callback = draw(st.sampled_from((_nothing, None)))
        limit = draw(st.sampled_from((None, 1, 2)))
        return c.Subscribe(name, f"subscription-{number}", draw(patterns(2)), callback, max_in_flight=limit)
    held = [
        (message.id, slot.lease.subscriber_id)
        for message in state.messages.leased()
        for slot in message.slots()
        if slot.lease is not None
    ]
    message_id, holder = draw(st.sampled_from(held or [("0-nobody", name)]))
    name = draw(st.sampled_from((holder, holder, name)))
    how = draw(st.sampled_from(("acknowledge", "acknowledge", "refuse", "extend", "end")))
    if how == "acknowledge":
        return c.Acknowledge(message_id, name)
    if how == "refuse":
        return c.NegativeAcknowledge(message_id, name, "no", draw(st.sampled_from((None, 0.0, 3.0))))
    if how == "extend":
        return c.ExtendLease(message_id, name, draw(st.sampled_from((1.0, 20.0))))
    return c.EndLease(message_id, name, "the process ended")


@st.composite
def histories(
    draw: st.DrawFn,
    configuration: st.SearchStrategy[QueueConfiguration] | None = None,
    min_size: int = 0,
    max_size: int = 30,
) -> list[RecordedEvent]:
    """Legal histories of one queue: ``max_size`` commands and moments, decided as a queue decides them."""
    state, events = QueueState(), []
    now = START

    def take(decided: tuple[e.Event, ...]) -> None:
        for event in decided:
            state.apply(event)
            events.append(event)

    def until_quiet(decider: Callable[[QueueState, Context], Any]) -> None:
        while (decision := decider(state, Context(now, "h"))).events:
            take(decision.events)

    take(
        decide(
            state, c.Open(draw(configurations() if configuration is None else configuration)), Context(now, "h")
        ).events
    )
    # From the start somebody takes everything, so that short histories have deliveries in them.
    take(decide(state, c.Subscribe("r", "subscription-r", "#", _nothing), Context(now, "h")).events)
    for number in range(draw(st.integers(min_size, max_size))):
        step = draw(st.sampled_from(("command", "command", "command", "dispatch", "dispatch", "wait")))
        if step == "wait":
            now += draw(st.sampled_from((0.5, 5.0, 30.0)))
        until_quiet(decide_tick)
        if step == "dispatch":
            until_quiet(decide_dispatch)
        elif step == "command":
            command = draw(commands(state, number))
            subscriber = state.subscribers.get(getattr(command, "subscriber_id", ""))
            other_way = (
                isinstance(command, c.Subscribe)
                and subscriber is not None
                and subscriber.present
                and subscriber.pull is not (command.callback is None)
            )
            if not other_way:
                take(decide(state, command, Context(now, "h")).events)
    return recorded(events, f"queue:{state.configuration.name}")


@attrs.frozen
class Illegal:
    """A history that breaks ``rule``, and what was done to it."""

    records: list[RecordedEvent]
    rule: str
    change: str


Changed = tuple[list[e.Event], str, str]
"""The events, the rule they break, and how."""


def _stranger(events: list[e.Event], draw: st.DrawFn) -> Changed | None:
    at = events[-1].at
    return [*events, e.MessageDelivered(at, "0-nobody", "r", "x", 1, at + 1)], "I3", "a message that nobody sent"


def _time_runs_back(events: list[e.Event], draw: st.DrawFn) -> Changed | None:
    return [*events, e.MessageRejected(events[-1].at - 1, "t", RejectionReason.CLOSING, "late")], "I1", "time runs back"


def _twice(events: list[e.Event], draw: st.DrawFn) -> Changed | None:
    sent = [index for index, event in enumerate(events) if isinstance(event, e.MessageEnqueued)]
    if not sent:
        return None
    index = draw(st.sampled_from(sent))
    return [*events[: index + 1], *events[index:]], "S1", "a message accepted twice"


def _wrong_attempt(events: list[e.Event], draw: st.DrawFn) -> Changed | None:
    found = [index for index, event in enumerate(events) if isinstance(event, e.MessageDelivered)]
    if not found:
        return None
    index = draw(st.sampled_from(found))
    delivered = events[index]
    assert isinstance(delivered, e.MessageDelivered)
    wrong = msgspec.structs.replace(delivered, attempt=delivered.attempt + 1)
    return [*events[:index], wrong, *events[index + 1 :]], "R1", "an attempt that was not counted"


def _end_twice(events: list[e.Event], draw: st.DrawFn) -> Changed | None:
    ends = (e.MessageExpired, e.MessageDropped, e.MessageDeadLettered, e.MessageFailed, e.MessageCompleted)
    found = [index for index, event in enumerate(events) if isinstance(event, ends)]
    if not found:
        return None
    index = draw(st.sampled_from(found))
    return [*events[: index + 1], *events[index:]], "I2", "a message that ends twice"


_CHANGES = (_stranger, _time_runs_back, _twice, _wrong_attempt, _end_twice)


@st.composite
def illegal_histories(draw: st.DrawFn) -> Illegal:
    """Histories that break a rule, and the rule: a legal one with one change."""
    events = [record.event for record in draw(histories(min_size=5))]
    possible = [made for change in _CHANGES if (made := change(events, draw)) is not None]
    history, rule, what = draw(st.sampled_from(possible))
    return Illegal(recorded(history), rule, what)
