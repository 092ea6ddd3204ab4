"""Rules about sends: S1, S2, G1, U1 and C1."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any, ClassVar

from mpreg_mq.errors import PayloadError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.model import DeliveryGuarantee, OverflowPolicy, RejectionReason
from mpreg_mq.payload import decode_payload, fingerprint
from mpreg_mq.topics import topic_problem


class Acceptance(Rule):
    """S1: a message is accepted once, under an id that no other message of the queue ever had.

    Keeps the highest number of each run of ids ``<number>-<run>``, one entry for each start of the queue.
    """

    id = "S1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageEnqueued: "_on_enqueued"}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._highest: dict[str, tuple[int, RecordedEvent]] = {}

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        message_id = event.message_id
        before = self.facts.messages.get(message_id)
        if before is not None:
            self.violated(record, f"message {message_id} is accepted while it is unfinished", before.record)
            return
        ended = self.facts.finished.get(message_id)
        if ended is not None:
            self.violated(record, f"message {message_id} is accepted again after its end", ended)
            return
        number, dash, run = message_id.partition("-")
        if not dash or not number.isdecimal():
            return
        highest = self._highest.get(run)
        if highest is not None and int(number) <= highest[0]:
            self.violated(record, f"the id {message_id} was given before, or out of order", highest[1])
            return
        self._highest[run] = (int(number), record)


class Limits(Rule):
    """S2: what is accepted keeps the limits of the queue.

    Sizes are not looked at where a dead letter was redriven: before redrives were held to them, larger ones were
    accepted, and logs of then are right.
    """

    id = "S2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageEnqueued: "_on_enqueued"}

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        problem = topic_problem(event.topic)
        if problem is not None:
            self.violated(record, f"a malformed topic is accepted: {problem}")
        if event.guarantee is DeliveryGuarantee.FIRE_AND_FORGET:
            self.violated(record, "a fire-and-forget message is kept as pending")
        if event.redriven_from is not None:
            return
        configuration = self.configuration
        if len(event.payload) > configuration.max_payload_bytes:
            self.violated(record, f"a payload of {len(event.payload)} bytes is accepted", self.facts.created)
        options = event.options
        if options.headers is not None:
            size = headers_bytes(options.headers)
            if size > configuration.max_headers_bytes:
                self.violated(record, f"headers of {size} bytes are accepted", self.facts.created)


def headers_bytes(headers: Mapping[str, str]) -> int:
    """What S2 counts of the headers of a message."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in headers.items())


class FireAndForget(Rule):
    """G1: one attempt at subscribers that are called, each either reached or failed, never both.

    Who left is remembered for a while, because it may have left while the attempt was under way.
    """

    id = "G1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.FireAndForgetSent: "_on_sent"}

    def _on_sent(self, record: RecordedEvent, event: e.FireAndForgetSent) -> None:
        reached = (*event.delivered_to, *event.failed)
        if len(set(reached)) != len(reached):
            self.violated(record, f"a fire-and-forget message has more than one outcome at one of {sorted(reached)}")
        subscribers = self.facts.subscribers
        if event.topic and not self.facts.complete:
            return
        for subscriber_id in reached:
            left = subscribers.departed.get(subscriber_id)
            subscriber = subscribers.by_id.get(subscriber_id)
            if subscriber is not None and not subscriber.pull and subscriber.matches(event.topic):
                continue
            if left is None:
                joined = () if subscriber is None else tuple(subscriber.subscriptions.values())
                self.violated(
                    record,
                    f"subscriber {subscriber_id} got a message on {event.topic}, to which it is not subscribed",
                    *joined,
                )


class Deduplication(Rule):
    """U1: a key belongs to one message for the window, and a send is refused as a duplicate only then.

    Where the queue deduplicates, every message that was sent has one. Keeps the keys whose window has not ended.
    """

    id = "U1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageEnqueued: "_on_accepted",
        e.FireAndForgetSent: "_on_accepted",
        e.DuplicateRejected: "_on_rejected",
        e.QueueDeleted: "_on_deleted",
    }

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._holders: dict[str, tuple[float, RecordedEvent]] = {}
        self._ends: list[tuple[float, str]] = []

    def _on_accepted(self, record: RecordedEvent, event: e.MessageEnqueued | e.FireAndForgetSent) -> None:
        ends, holders = self._ends, self._holders
        while ends and ends[0][0] <= event.at:
            until, ended = heappop(ends)
            if ended in holders and holders[ended][0] <= until:
                del holders[ended]
        key = event.deduplication_key
        if key is None:
            if (
                self.configuration.enable_deduplication
                and isinstance(event, e.MessageEnqueued)
                and event.redriven_from is None
            ):
                self.violated(record, "the queue deduplicates, and the message claims no key", self.facts.created)
            return
        if isinstance(event, e.MessageEnqueued):
            self._check_key(record, event, key)
        held = holders.get(key)
        if held is not None and event.at < held[0]:
            self.violated(record, f"the key {key!r} is claimed again {held[0] - event.at:g} s too early", held[1])
        until = event.at + self.configuration.deduplication_window_seconds
        holders[key] = (until, record)
        heappush(ends, (until, key))

    def _check_key(self, record: RecordedEvent, event: e.MessageEnqueued, key: str) -> None:
        """A key that was named goes before the fingerprint; that of ``send_once``, which may be any, before both."""
        named = event.options.deduplication_id
        if named is None or named == key:
            return
        try:
            fallback = fingerprint(event.topic, decode_payload(event.payload), event.options.headers)
        except PayloadError:
            return
        if key == fallback:
            self.violated(record, f"the message claims its fingerprint {key!r}, its sender named {named!r}")

    def _on_rejected(self, record: RecordedEvent, event: e.DuplicateRejected) -> None:
        held = self._holders.get(event.deduplication_key)
        if held is None or event.at >= held[0]:
            if self.facts.complete:
                self.violated(
                    record,
                    f"a send is refused as a duplicate, but nobody holds the key {event.deduplication_key!r}",
                    None if held is None else held[1],
                    self.facts.finished.get(event.duplicate_of),
                    message_id=event.duplicate_of,
                )
        elif getattr(held[1].event, "message_id", None) != event.duplicate_of:
            self.violated(
                record,
                f"the key {event.deduplication_key!r} belongs to another message than {event.duplicate_of}",
                held[1],
                message_id=event.duplicate_of,
            )

    def _on_deleted(self, record: RecordedEvent, event: e.QueueDeleted) -> None:
        self._holders.clear()
        self._ends.clear()


class Capacity(Rule):
    """C1: nothing is accepted beyond ``max_size``, and nothing refused or dropped below it."""

    id = "C1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageEnqueued: "_on_enqueued",
        e.MessageRejected: "_on_rejected",
        e.MessageDropped: "_on_dropped",
    }

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        facts = self.facts
        if facts.pending < self.configuration.max_size:
            return
        previous = facts.previous
        if previous is None or not isinstance(previous.event, e.MessageDropped):
            self.violated(
                record,
                f"a message is accepted while {facts.pending} are pending, the limit is {self.configuration.max_size}",
                facts.created,
                previous,
            )

    def _on_rejected(self, record: RecordedEvent, event: e.MessageRejected) -> None:
        facts = self.facts
        if event.reason is RejectionReason.CAPACITY and facts.complete and facts.pending < self.configuration.max_size:
            self.violated(
                record,
                f"a send is refused for capacity while {facts.pending} are pending, the limit is "
                f"{self.configuration.max_size}",
                facts.created,
                facts.previous,
            )

    def _on_dropped(self, record: RecordedEvent, event: e.MessageDropped) -> None:
        facts, configuration = self.facts, self.configuration
        if configuration.overflow_policy is not OverflowPolicy.DROP_OLDEST:
            self.violated(
                record, f"a message is dropped under the policy {configuration.overflow_policy.value}", facts.created
            )
            return
        message = facts.message
        if message is None or not facts.complete:
            return
        if facts.pending < configuration.max_size:
            self.violated(
                record,
                f"a message is dropped while {facts.pending} are pending, the limit is {configuration.max_size}",
                message.record,
            )
        oldest = next((other for other in facts.messages.values() if not other.leases), None)
        if oldest is not message and oldest is not None:
            self.violated(
                record, f"{event.message_id} is dropped, but {oldest.id} is older", oldest.record, message.record
            )
