"""Rules about who gets a message: G2, G3, G4, G5, G6, C2 and C4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.messages import MessageFacts
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.model import DeliveryGuarantee


class CompetingConsumers(Rule):
    """G2: an at-least-once message is with one subscriber at a time, the least busy, then the least recently used."""

    id = "G2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDelivered: "_on_delivered",
        e.AudienceFixed: "_on_audience_fixed",
        e.MessageCompleted: "_on_completed",
    }

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message = self.facts.message
        if message is None or not message.alone:
            return
        held = message.slot.lease
        if held is not None:
            self.violated(record, f"message {message.id} goes to {event.subscriber_id} while somebody has it", held)
        if event.pull or not self.facts.complete:
            return
        chosen = self.facts.subscriber
        other = None if chosen is None else self.facts.subscribers.less_busy(chosen, message.event.topic)
        if chosen is not None and other is not None:
            self.violated(
                record,
                f"{chosen.id} holds {len(chosen.held)} messages and is given another, {other.id} holds "
                f"{len(other.held)} and was used less recently",
                chosen.last_delivery,
                other.last_delivery,
            )

    def _on_audience_fixed(self, record: RecordedEvent, event: e.AudienceFixed) -> None:
        message = self.facts.message
        if message is not None and message.alone:
            self.violated(record, f"at-least-once message {message.id} gets an audience", message.record)

    def _on_completed(self, record: RecordedEvent, event: e.MessageCompleted) -> None:
        message = self.facts.message
        if message is not None and message.alone:
            self.violated(record, f"{message.id} is completed without an acknowledgment", message.record)


_OUTCOMES = (e.MessageCompleted, e.MessageDeadLettered, e.MessageFailed, e.QuorumMissed)


class Broadcast(Rule):
    """G3: the audience is everybody who matches at the first dispatch, and each of them must acknowledge.

    Who unsubscribes leaves the audiences it has not acknowledged for, at once.
    """

    id = "G3"
    GUARANTEE: ClassVar[DeliveryGuarantee] = DeliveryGuarantee.BROADCAST
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.AudienceFixed: "_on_audience_fixed",
        e.MessageDelivered: "_on_delivered",
        e.MessageAcknowledged: "_on_acknowledged",
        e.DeliveryFailed: "_on_failed",
        e.LeaseExpired: "_on_failed",
        e.AudienceMemberLeft: "_on_member_left",
        e.SubscriberLeft: "_on_left",
        e.MessageCompleted: "_on_completed",
    }

    def _mine(self) -> MessageFacts | None:
        message = self.facts.message
        return message if message is not None and message.event.guarantee is self.GUARANTEE else None

    def _on_audience_fixed(self, record: RecordedEvent, event: e.AudienceFixed) -> None:
        message = self._mine()
        if message is None:
            return
        if message.members is not None:
            self.violated(record, f"the audience of {message.id} changes after it was fixed", message.fixed)
        elif self.facts.complete:
            self._check_first_audience(record, event, message)

    def _check_first_audience(self, record: RecordedEvent, event: e.AudienceFixed, message: MessageFacts) -> None:
        expected = self.facts.subscribers.audience(message.event.topic)
        if set(event.subscriber_ids) != expected or len(event.subscriber_ids) != len(expected) or not expected:
            self.violated(
                record,
                f"the audience of {message.id} is {sorted(event.subscriber_ids)}, "
                f"those who match {message.event.topic} are {sorted(expected)}",
                message.record,
            )

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message = self._mine()
        if message is None:
            return
        if message.members is None:
            self.violated(record, f"{message.id} is delivered before its audience is fixed", message.record)
            return
        slot = self.facts.slot
        if slot is None:
            self.violated(record, f"{event.subscriber_id} is not in the audience of {message.id}", message.fixed)
        elif slot.acknowledged is not None:
            self.violated(record, f"{event.subscriber_id} has acknowledged {message.id} already", slot.acknowledged)

    def _on_acknowledged(self, record: RecordedEvent, event: e.MessageAcknowledged) -> None:
        message = self._mine()
        if message is None:
            return
        if event.completes:
            self.violated(
                record, f"one acknowledgment completes {message.id}, which goes to an audience", message.fixed
            )
        self._expect_end(record, message)

    def _on_failed(self, record: RecordedEvent, event: e.DeliveryFailed | e.LeaseExpired) -> None:
        message = self._mine()
        if message is not None:
            self._expect_end(record, message)

    def _expect_end(self, record: RecordedEvent, message: MessageFacts) -> None:
        self.expect(lambda following: self._ends_when_answered(message, record, following))

    def _ends_when_answered(
        self, message: MessageFacts, answer: RecordedEvent, following: RecordedEvent | None
    ) -> bool:
        """After an answer that was the last one needed, the message ends or waits for newcomers, at once."""
        if message.finished or self.facts.messages.get(message.id) is not message:
            return True
        if following is not None and isinstance(following.event, e.CircuitClosed | e.CircuitOpened):
            return False
        if not self._must_end(message):
            return True
        if following is None or not isinstance(following.event, _OUTCOMES) or following.event.message_id != message.id:
            self.violated(following or answer, f"{message.id} has all its answers and does not end", answer)
        return True

    def _must_end(self, message: MessageFacts) -> bool:
        return message.members is not None and message.everybody_answered

    def _on_member_left(self, record: RecordedEvent, event: e.AudienceMemberLeft) -> None:
        message, slot = self._mine(), self.facts.slot
        if message is None:
            return
        if message.members is None or slot is None:
            self.violated(record, f"{event.subscriber_id} leaves an audience it is not in", message.fixed)
        elif slot.acknowledged is not None:
            self.violated(record, f"{event.subscriber_id} leaves {message.id} after it acknowledged", slot.acknowledged)
        else:
            left = self.facts.subscribers.departed.get(event.subscriber_id)
            unsubscribed = left is not None and getattr(left.event, "unsubscribed", False)
            if not unsubscribed and self.facts.complete:
                self.violated(record, f"{event.subscriber_id} leaves {message.id} but did not unsubscribe", left)
            self._expect_end(record, message)

    def _on_left(self, record: RecordedEvent, event: e.SubscriberLeft) -> None:
        subscriber = self.facts.subscribers.by_id.get(event.subscriber_id)
        # A subscription that was not seen to begin may keep the subscriber in its audiences.
        if not event.unsubscribed or subscriber is None or not self.facts.complete:
            return
        others = [other for other in subscriber.subscriptions if other != event.subscription_id]
        leaving = {
            message.id
            for message in self.facts.audiences.values()
            if message.event.guarantee is self.GUARANTEE
            and message.members is not None
            and (slot := message.members.get(event.subscriber_id)) is not None
            and slot.acknowledged is None
            and not any(subscriber.subscription_matches(other, message.event.topic) for other in others)
        }
        if leaving:
            self.expect(lambda following: self._leaves_at_once(leaving, record, following))

    def _leaves_at_once(self, leaving: set[str], left: RecordedEvent, following: RecordedEvent | None) -> bool:
        left_event = left.event
        assert isinstance(left_event, e.SubscriberLeft)
        leaving.intersection_update(self.facts.messages)
        if following is not None and isinstance(following.event, e.AudienceMemberLeft):
            leaving.discard(following.event.message_id)
            return not leaving
        if not leaving:
            return True
        # The leaving of one message may end that one first.
        if following is not None and isinstance(following.event, _OUTCOMES):
            return False
        self.violated(
            following or left,
            f"{left_event.subscriber_id} unsubscribed and is still in the audience of {min(leaving)}",
            left,
            message_id=min(leaving),
        )
        return True

    def _on_completed(self, record: RecordedEvent, event: e.MessageCompleted) -> None:
        message = self._mine()
        if message is None:
            return
        missing = [key for key, slot in (message.members or {}).items() if slot.acknowledged is None]
        if missing or not message.members:
            self.violated(
                record, f"{message.id} is complete without acknowledgments of {sorted(missing)}", message.fixed
            )


class Quorum(Broadcast):
    """G4: complete at ``required_acknowledgments`` distinct acknowledgments; newcomers enter the audience."""

    id = "G4"
    GUARANTEE: ClassVar[DeliveryGuarantee] = DeliveryGuarantee.QUORUM
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        **Broadcast.HANDLED,
        e.QuorumMissed: "_on_missed",
        e.MessageDeadLettered: "_on_given_up",
        e.MessageFailed: "_on_given_up",
    }

    def _on_audience_fixed(self, record: RecordedEvent, event: e.AudienceFixed) -> None:
        message = self._mine()
        if message is None or not self.facts.complete:
            return
        if message.members is None:
            self._check_first_audience(record, event, message)
            return
        matching = self.facts.subscribers.audience(message.event.topic)
        for subscriber_id in event.subscriber_ids:
            if subscriber_id in message.members:
                self.violated(record, f"{subscriber_id} enters the audience of {message.id} twice", message.fixed)
            elif subscriber_id not in matching:
                self.violated(
                    record, f"{subscriber_id} enters the audience of {message.id} and does not match", message.record
                )

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        super()._on_delivered(record, event)
        message = self._mine()
        if message is not None and message.members is not None and self.facts.complete:
            self._check_newcomers(record, message)

    def _check_newcomers(self, record: RecordedEvent, message: MessageFacts) -> None:
        members = message.members or {}
        missing = self.facts.subscribers.audience(message.event.topic) - members.keys()
        if missing:
            joined = self.facts.subscribers.by_id[min(missing)].subscriptions.values()
            self.violated(
                record, f"{min(missing)} subscribed and is not in the audience of {message.id}", message.fixed, *joined
            )

    def _must_end(self, message: MessageFacts) -> bool:
        return message.members is not None and (
            message.acknowledgments >= message.required or message.everybody_answered
        )

    def _on_completed(self, record: RecordedEvent, event: e.MessageCompleted) -> None:
        message = self._mine()
        if message is not None and message.acknowledgments < message.required:
            counted = [slot.acknowledged for slot in message.slots()]
            self.violated(
                record,
                f"{message.id} is complete with {message.acknowledgments} of {message.required} acknowledgments",
                message.fixed,
                *counted,
            )

    def _on_missed(self, record: RecordedEvent, event: e.QuorumMissed) -> None:
        message = self._mine()
        if message is None:
            return
        if (event.acknowledgments, event.required) != (message.acknowledgments, message.required):
            self.violated(
                record,
                f"the quorum of {message.id} has {message.acknowledgments} of {message.required} acknowledgments, "
                f"the log says {event.acknowledgments} of {event.required}",
                message.fixed,
            )
        if not message.everybody_answered or message.exhausted:
            self.violated(record, f"the quorum of {message.id} is given up before everybody answered", message.fixed)
        if message.missed >= message.max_attempts and not message.goes_on_waiting(event):
            self.violated(record, f"{message.id} waits for newcomers more often than it has attempts", message.fixed)
        if self.facts.complete:
            self._check_newcomers(record, message)

    def _on_given_up(self, record: RecordedEvent, event: e.MessageDeadLettered | e.MessageFailed) -> None:
        message = self._mine()
        if message is not None and message.acknowledgments >= message.required:
            counted = [slot.acknowledged for slot in message.slots()]
            self.violated(record, f"{message.id} has its quorum and is given up", message.fixed, *counted)


class NoSubscriber(Rule):
    """G5: a message that nobody ever got waits; it is not given up."""

    id = "G5"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDeadLettered: "_on_given_up",
        e.MessageFailed: "_on_given_up",
    }

    def _on_given_up(self, record: RecordedEvent, event: e.MessageDeadLettered | e.MessageFailed) -> None:
        message = self.facts.message
        if message is not None and all(slot.delivered is None for slot in message.slots()):
            self.violated(record, f"{message.id} is given up and was never delivered", message.record)


class Topics(Rule):
    """G6: a message goes to a subscription that exists, and that matches its topic."""

    id = "G6"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageDelivered: "_on_delivered"}

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        message, subscriber = self.facts.message, self.facts.subscriber
        if message is None or not self.facts.complete:
            return
        joined = subscriber.subscriptions.get(event.subscription_id) if subscriber is not None else None
        if subscriber is None or joined is None:
            left = self.facts.subscribers.departed.get(event.subscriber_id)
            self.violated(
                record, f"{event.subscriber_id} has no subscription {event.subscription_id}", left, message.record
            )
            return
        topic = message.event.topic
        if subscriber.subscription_matches(event.subscription_id, topic):
            return
        # A member that came back with other patterns keeps its place (G3), and gets it through any of them.
        if message.members is None or subscriber.matches(topic):
            self.violated(record, f"the subscription does not match the topic {topic!r}", joined, message.record)


class InFlight(Rule):
    """C2: a subscriber holds at most ``max_in_flight`` messages."""

    id = "C2"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageDelivered: "_on_delivered"}

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        subscriber = self.facts.subscriber
        if subscriber is None or event.message_id in subscriber.held:
            return
        if len(subscriber.held) >= subscriber.max_in_flight and subscriber.subscriptions:
            self.violated(
                record,
                f"{subscriber.id} holds {len(subscriber.held)} messages, its limit is {subscriber.max_in_flight}",
                *list(subscriber.subscriptions.values())[-1:],
                subscriber.last_delivery,
            )


class Pause(Rule):
    """C4: nothing is delivered while the queue is paused."""

    id = "C4"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {e.MessageDelivered: "_on_delivered"}

    def _on_delivered(self, record: RecordedEvent, event: e.MessageDelivered) -> None:
        if self.facts.paused is not None:
            self.violated(record, f"{event.message_id} is delivered while the queue is paused", self.facts.paused)
