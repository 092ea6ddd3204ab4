"""Rules about what becomes of a delivery: L1, L2, L3, R1, R2, R3 and C3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.messages import MessageFacts, SlotFacts
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.invariants.subscribers import SubscriberFacts
from mpreg_mq.model import CircuitState

ROUNDING_SECONDS = 1e-5
"""Two sums of the same seconds since the epoch may differ by a few of their last bits."""

Failure = e.DeliveryFailed | e.LeaseExpired


class Leases(Rule):
    """L1: one live lease for each (message, subscriber), for as long as was asked, and not ended before its time."""

    id = "L1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.LeaseExpired: "_on_expired",
    }

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message, slot = self.facts.message, self.facts.slot
        if message is None or slot is None:
            return
        if slot.lease is not None:
            self.violated(record, f"{event.message_id} is delivered while a lease on it is open", slot.lease)
        options, configuration = message.event.options, self.configuration
        if event.pull:
            if event.deadline <= event.at:
                self.violated(record, "the lease ends when it begins")
            return
        seconds = options.acknowledgment_timeout_seconds or configuration.default_acknowledgment_timeout_seconds
        if abs(event.at + seconds - event.deadline) > ROUNDING_SECONDS:
            self.violated(
                record,
                f"the lease is for {event.deadline - event.at:g} s, the acknowledgment timeout is {seconds:g} s",
                message.record,
            )

    def _on_expired(self, record: RecordedEvent, event: e.LeaseExpired) -> None:
        if self.unseen:
            return
        slot = self.facts.slot
        lease = None if slot is None else slot.lease
        if slot is None or lease is None or not _is_of(lease, event.subscriber_id, event.attempt):
            self.violated(record, f"{event.subscriber_id} has no such lease on {event.message_id}", _latest(slot))
        elif not event.process_ended and event.at < slot.deadline:
            self.violated(
                record, f"the lease ends {slot.deadline - event.at:g} s before its deadline", lease, slot.deadline_set
            )


class Acknowledgments(Rule):
    """L2: an acknowledgment counts from who was given the message last, once, while the message is not finished."""

    id = "L2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageAcknowledged: "_on_acknowledged"}

    def _on_acknowledged(self, record: RecordedEvent, event: e.MessageAcknowledged) -> None:
        message, slot = self.facts.message, self.facts.slot
        if message is None:
            return
        if slot is None or slot.delivered is None:
            self.violated(
                record, f"{event.subscriber_id} acknowledges {message.id}, which it was never given", message.record
            )
            return
        if not _is_of(slot.delivered, event.subscriber_id, None):
            self.violated(
                record, f"{event.subscriber_id} acknowledges {message.id}, which somebody else has", slot.delivered
            )
        if slot.acknowledged is not None:
            self.violated(record, f"{event.subscriber_id} acknowledges {message.id} twice", slot.acknowledged)
        if message.alone and not event.completes:
            self.violated(record, f"{message.id} is acknowledged and not finished", slot.delivered)


class Refusals(Rule):
    """L3: who gives a message back or asks for more time holds its lease."""

    id = "L3"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.DeliveryFailed: "_on_failed",
        e.LeaseExtended: "_on_extended",
    }

    def _on_failed(self, record: RecordedEvent, event: e.DeliveryFailed) -> None:
        if self.unseen:
            return
        slot = self.facts.slot
        if slot is None or slot.lease is None or not _is_of(slot.lease, event.subscriber_id, event.attempt):
            self.violated(record, f"{event.subscriber_id} fails an attempt that is not its own", _latest(slot))

    def _on_extended(self, record: RecordedEvent, event: e.LeaseExtended) -> None:
        if self.unseen:
            return
        slot = self.facts.slot
        if slot is None or slot.lease is None or not _is_of(slot.lease, event.subscriber_id, None):
            self.violated(record, f"{event.subscriber_id} extends a lease it does not have", _latest(slot))
        elif event.deadline < event.at:
            self.violated(record, "the lease is extended into the past", slot.deadline_set)


def _is_of(delivered: RecordedEvent, subscriber_id: str, attempt: int | None) -> bool:
    event = delivered.event
    assert isinstance(event, e.MessageDelivered)
    return event.subscriber_id == subscriber_id and (attempt is None or event.attempt == attempt)


def _latest(slot: SlotFacts | None) -> RecordedEvent | None:
    return None if slot is None else slot.delivered


class Attempts(Rule):
    """R1: attempts count up from 1 to the limit and no further, and a message is given up only after the last.

    A failed attempt is answered at once: by a requeue while attempts are left, else by the end of the message or of
    that member's part in it.
    """

    id = "R1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.DeliveryFailed: "_on_failed",
        e.LeaseExpired: "_on_failed",
        e.MessageRequeued: "_on_requeued",
        e.MessageDeadLettered: "_on_given_up",
        e.MessageFailed: "_on_given_up",
    }

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message, slot = self.facts.message, self.facts.slot
        if message is None or slot is None:
            return
        if event.attempt != slot.attempts + 1:
            self.violated(
                record, f"attempt {event.attempt} of {message.id} follows attempt {slot.attempts}", _latest(slot)
            )
        if event.attempt > message.max_attempts:
            self.violated(
                record,
                f"attempt {event.attempt} of {message.id}, which has {message.max_attempts}",
                message.record,
                _latest(slot),
            )

    def _on_failed(self, record: RecordedEvent, event: Failure) -> None:
        message, slot = self.facts.message, self.facts.slot
        if message is not None and slot is not None:
            self.expect(lambda following: self._is_answered(message, slot, record, following))

    def _is_answered(
        self, message: MessageFacts, slot: SlotFacts, failed: RecordedEvent, following: RecordedEvent | None
    ) -> bool:
        if message.finished or slot.failure is not failed or (slot.subscriber_id is not None and slot.exhausted):
            return True
        if following is not None and isinstance(following.event, e.CircuitOpened):
            return False
        if following is None or getattr(following.event, "message_id", None) != message.id:
            self.violated(following or failed, f"the failed attempt of {message.id} has no consequence", failed)
        return True

    def _on_requeued(self, record: RecordedEvent, event: e.MessageRequeued) -> None:
        message = self.facts.message
        slot = None if message is None else self.facts.requeued_slot(message, event)
        if message is None:
            return
        if slot is None or slot.failure is None:
            self.violated(record, f"{message.id} is requeued without a failed attempt", _latest(slot), message.record)
        elif slot.attempts >= message.max_attempts:
            self.violated(record, f"{message.id} is requeued after its last attempt", message.record, slot.failure)

    def _on_given_up(self, record: RecordedEvent, event: e.MessageDeadLettered | e.MessageFailed) -> None:
        message = self.facts.message
        if message is None or message.missed >= message.max_attempts:
            return
        answered = message.everybody_answered if message.members is not None else message.slot.exhausted
        if not answered or not message.exhausted:
            used = max((slot.attempts for slot in message.slots()), default=0)
            failures = [slot.last_failure for slot in message.slots()]
            self.violated(
                record,
                f"{message.id} is given up after {used} of {message.max_attempts} attempts",
                message.record,
                *failures,
            )


class Backoff(Rule):
    """R2: between attempts the message waits until its due time, which is logged and keeps to the configured backoff.

    A negative acknowledgment may ask for any delay, so only the waits after a lease that ran out are judged by size.
    """

    id = "R2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.MessageRequeued: "_on_requeued",
    }

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message, slot = self.facts.message, self.facts.slot
        if message is None or slot is None:
            return
        if slot.failure is not None:
            self.violated(record, f"{message.id} is delivered again without a due time", slot.failure)
        elif event.at < slot.due_at and slot.attempts:
            self.violated(record, f"{message.id} is retried {slot.due_at - event.at:g} s early", slot.scheduled)

    def _on_requeued(self, record: RecordedEvent, event: e.MessageRequeued) -> None:
        message = self.facts.message
        slot = None if message is None else self.facts.requeued_slot(message, event)
        if slot is None or slot.failure is None:
            return
        wait = event.due_at - event.at
        failed = slot.failure.event
        least, most = 0.0, float("inf")
        if isinstance(failed, e.LeaseExpired):
            least, most = (0.0, 0.0) if failed.process_ended else backoff_bounds(self.configuration, slot.attempts)
        if not least - ROUNDING_SECONDS <= wait <= most + ROUNDING_SECONDS:
            self.violated(
                record,
                f"the wait before the next attempt is {wait:g} s, expected {least:g} to {most:g} s",
                slot.failure,
            )


def backoff_bounds(configuration: QueueConfiguration, attempts: int) -> tuple[float, float]:
    """The least and the most seconds that R2 allows after so many attempts."""
    try:
        grown = configuration.retry_backoff_seconds * configuration.retry_backoff_multiplier ** (attempts - 1)
    except OverflowError:
        grown = configuration.retry_backoff_max_seconds
    most = min(grown, configuration.retry_backoff_max_seconds)
    return most * (1.0 - configuration.retry_jitter), most


class Circuit(Rule):
    """R3: a circuit opens at so many failures in a row, lets nothing through, probes with one message, then closes.

    Where the beginning of the history is missing, nobody's failures in a row are known, and a circuit only once it was
    seen to change.
    """

    id = "R3"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.DeliveryFailed: "_on_failed",
        e.LeaseExpired: "_on_failed",
        e.MessageAcknowledged: "_on_acknowledged",
        e.CircuitOpened: "_on_opened",
        e.CircuitHalfOpened: "_on_half_opened",
        e.CircuitClosed: "_on_closed",
    }

    def _subscriber(self, event: e.CircuitOpened | e.CircuitHalfOpened | e.CircuitClosed) -> SubscriberFacts | None:
        return self.facts.subscribers.by_id.get(event.subscriber_id)

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        subscriber = self.facts.subscriber
        if subscriber is None or subscriber.circuit is CircuitState.CLOSED:
            return
        if subscriber.circuit is CircuitState.OPEN:
            self.violated(record, f"{subscriber.id} is given a message, its circuit is open", subscriber.circuit_set)
        elif subscriber.probing():
            self.violated(
                record,
                f"{subscriber.id} is given a second message while the first probes its circuit",
                subscriber.circuit_set,
                subscriber.last_delivery,
            )

    def _is_known(self, subscriber: SubscriberFacts) -> bool:
        """Whether the facts say what its circuit is."""
        return self.facts.complete or subscriber.circuit_set is not None

    def _trips(self, subscriber: SubscriberFacts) -> bool:
        threshold = self.configuration.circuit_breaker_failure_threshold
        if threshold is None or not subscriber.subscriptions or subscriber.circuit is CircuitState.OPEN:
            return False
        return subscriber.circuit is CircuitState.HALF_OPEN or subscriber.failures >= threshold

    def _on_failed(self, record: RecordedEvent, event: Failure) -> None:
        subscriber = self.facts.subscriber
        if subscriber is None or not self.facts.complete:
            return
        if self.configuration.circuit_breaker_failure_threshold is None:
            return
        if not getattr(event, "process_ended", False):
            self.expect(lambda following: self._opens_at_once(subscriber, record, following))

    def _opens_at_once(
        self, subscriber: SubscriberFacts, failed: RecordedEvent, following: RecordedEvent | None
    ) -> bool:
        known = self.facts.subscribers.by_id.get(subscriber.id)
        if (
            known is subscriber
            and self._trips(subscriber)
            and (following is None or not isinstance(following.event, e.CircuitOpened))
        ):
            self.violated(
                following or failed,
                f"{subscriber.id} failed {subscriber.failures} times in a row and its circuit stays closed",
                subscriber.circuit_set,
                failed,
            )
        return True

    def _on_acknowledged(self, record: RecordedEvent, event: e.MessageAcknowledged) -> None:
        subscriber, slot = self.facts.subscriber, self.facts.slot
        if subscriber is None or subscriber.circuit is not CircuitState.HALF_OPEN or slot is None:
            return
        since = subscriber.circuit_set
        if since is not None and slot.delivered is not None and slot.delivered.position > since.position:
            self.expect(lambda following: self._closes_at_once(subscriber, since, record, following))

    def _closes_at_once(
        self,
        subscriber: SubscriberFacts,
        half_opened: RecordedEvent,
        acknowledged: RecordedEvent,
        following: RecordedEvent | None,
    ) -> bool:
        event = None if following is None else following.event
        if not isinstance(event, e.CircuitClosed) or event.subscriber_id != subscriber.id:
            self.violated(
                following or acknowledged,
                f"{subscriber.id} acknowledges what probes its circuit, which stays half open",
                half_opened,
                acknowledged,
            )
        return True

    def _on_opened(self, record: RecordedEvent, event: e.CircuitOpened) -> None:
        subscriber = self._subscriber(event)
        if subscriber is None:
            if self.facts.complete:
                self.violated(record, f"the circuit of {event.subscriber_id} opens, which is not there")
            return
        if self.facts.complete:
            self._check_failures(record, event, subscriber)
        recovery = self.configuration.circuit_breaker_recovery_seconds
        if abs(event.at + recovery - event.until) > ROUNDING_SECONDS:
            self.violated(record, f"the circuit is open for {event.until - event.at:g} s, expected {recovery:g} s")

    def _check_failures(self, record: RecordedEvent, event: e.CircuitOpened, subscriber: SubscriberFacts) -> None:
        if not self._trips(subscriber):
            self.violated(
                record,
                f"the circuit of {subscriber.id} opens after {subscriber.failures} failures in a row",
                subscriber.circuit_set,
                self.facts.previous,
            )
        elif event.failures != subscriber.failures:
            self.violated(
                record,
                f"{subscriber.id} failed {subscriber.failures} times in a row, the log says {event.failures}",
                self.facts.previous,
            )

    def _on_half_opened(self, record: RecordedEvent, event: e.CircuitHalfOpened) -> None:
        subscriber = self._subscriber(event)
        if subscriber is None or not self._is_known(subscriber):
            return
        if subscriber.circuit is not CircuitState.OPEN:
            self.violated(record, f"the circuit of {subscriber.id} was not open", subscriber.circuit_set)
        elif event.at < subscriber.until:
            self.violated(
                record, f"the circuit half opens {subscriber.until - event.at:g} s early", subscriber.circuit_set
            )

    def _on_closed(self, record: RecordedEvent, event: e.CircuitClosed) -> None:
        subscriber = self._subscriber(event)
        # Without a threshold there are no circuits: those that are open are closed.
        if subscriber is None or not self._is_known(subscriber):
            return
        if self.configuration.circuit_breaker_failure_threshold is None:
            return
        previous = self.facts.previous
        acknowledged = previous is not None and isinstance(previous.event, e.MessageAcknowledged)
        if subscriber.circuit is not CircuitState.HALF_OPEN or not acknowledged:
            self.violated(
                record,
                f"the circuit of {subscriber.id} closes without a probe that succeeded",
                subscriber.circuit_set,
                previous,
            )


class Shutdown(Rule):
    """C3: when the process of a called subscriber ends, the leases it held have ended before."""

    id = "C3"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.SubscriberLeft: "_on_left"}

    def _on_left(self, record: RecordedEvent, event: e.SubscriberLeft) -> None:
        if event.unsubscribed:
            return
        subscriber = self.facts.subscribers.by_id.get(event.subscriber_id)
        for slot in () if subscriber is None else subscriber.held.values():
            lease = None if slot.lease is None else slot.lease.event
            if isinstance(lease, e.MessageDelivered) and lease.subscription_id == event.subscription_id:
                self.violated(
                    record,
                    f"the process of {event.subscriber_id} ends and {slot.message.id} stays leased to it",
                    slot.lease,
                    message_id=slot.message.id,
                )
