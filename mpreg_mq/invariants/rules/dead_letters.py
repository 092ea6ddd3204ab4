"""Rule D1: dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.facts import DeadFacts
from mpreg_mq.invariants.rule import Rule


class DeadLetters(Rule):
    """D1: a message that is given up is a dead letter with its attempts, its last error and who had it.

    Where the dead letter queue is disabled it has failed instead. A dead letter is redriven or purged once; what is
    redriven is the message that died, under a new id and without a deduplication key.
    """

    id = "D1"
    HANDLED: ClassVar[Mapping[type[e.Event], str]] = {
        e.MessageDeadLettered: "_on_given_up",
        e.MessageFailed: "_on_given_up",
        e.MessageEnqueued: "_on_enqueued",
        e.DeadLetterRedriven: "_on_redriven",
        e.DeadLettersPurged: "_on_purged",
    }

    def _on_given_up(self, record: RecordedEvent, event: e.MessageDeadLettered | e.MessageFailed) -> None:
        message = self.facts.message
        if message is None:
            return
        enabled = self.configuration.enable_dead_letter_queue
        if isinstance(event, e.MessageDeadLettered) is not enabled:
            self.violated(
                record, f"the dead letter queue is {'enabled' if enabled else 'disabled'}", self.facts.created
            )
        attempts = max((slot.attempts for slot in message.slots()), default=0)
        if event.attempts != attempts:
            self.violated(
                record, f"{message.id} had {attempts} attempts, the log says {event.attempts}", message.record
            )
        if not event.reason:
            self.violated(record, f"{message.id} is given up and nothing says why", message.record)
        failures = [slot.last_failure for slot in message.slots() if slot.last_failure is not None]
        last = [slot.last_failure for slot in message.slots() if slot.exhausted]
        if any(last) and event.error is None:
            self.violated(record, f"the end of {message.id} does not say what failed", message.record, *last)
        if any(last) and event.subscriber_id is None:
            self.violated(record, f"the end of {message.id} does not say who had it", message.record, *last)
        holders = {getattr(slot.delivered.event, "subscriber_id", None) for slot in message.slots() if slot.delivered}
        if event.subscriber_id is not None and event.subscriber_id not in holders:
            self.violated(record, f"{event.subscriber_id} never had {message.id}", message.record, *failures)
        errors = {getattr(found.event, "error", getattr(found.event, "reason", None)) for found in failures}
        if event.error is not None and event.error not in errors:
            self.violated(record, f"nobody failed with {event.error!r}", message.record, *failures)

    def _on_enqueued(self, record: RecordedEvent, event: e.MessageEnqueued) -> None:
        if event.redriven_from is None:
            return
        if event.deduplication_key is not None:
            self.violated(record, f"redriven message {event.message_id} claims a deduplication key")
        queue, _, dead_id = event.redriven_from.rpartition("/")
        if queue == self.facts.name:
            self.expect(lambda following: self._leaves(dead_id, record, following))
        source = self.facts.log.queues.get(queue)
        if source is None or not source.complete:
            return
        dead = source.dead.get(dead_id)
        if dead is None:
            self.violated(record, f"{event.message_id} is redriven from {event.redriven_from}, which is no dead letter")
        elif not _same(dead, event):
            self.violated(record, f"{event.message_id} is not the message that died as {dead_id}", dead.enqueued)

    def _leaves(self, dead_id: str, again: RecordedEvent, following: RecordedEvent | None) -> bool:
        """A dead letter that its own queue accepts again is a dead letter no more, at once."""
        event = None if following is None else following.event
        if not isinstance(event, e.DeadLetterRedriven) or event.message_id != dead_id:
            self.violated(following or again, f"{dead_id} is redriven and stays a dead letter", again)
        return True

    def _on_redriven(self, record: RecordedEvent, event: e.DeadLetterRedriven) -> None:
        if not self._is_dead(record, event.message_id):
            return
        target = self.facts.log.queues.get(event.target_queue)
        if target is None or not target.complete or target.deleted is not None:
            return
        new = target.messages.get(event.new_message_id)
        if new is None and event.new_message_id not in target.finished:
            self.violated(record, f"{event.new_message_id} was not accepted by {event.target_queue}")
        elif new is not None and new.event.redriven_from != f"{self.facts.name}/{event.message_id}":
            self.violated(record, f"{event.new_message_id} was not made from this dead letter", new.record)

    def _on_purged(self, record: RecordedEvent, event: e.DeadLettersPurged) -> None:
        for message_id in event.message_ids:
            self._is_dead(record, message_id)

    def _is_dead(self, record: RecordedEvent, message_id: str) -> bool:
        if message_id in self.facts.dead:
            return True
        if self.facts.complete:
            self.violated(
                record, f"{message_id} is no dead letter", self.facts.finished.get(message_id), message_id=message_id
            )
        return False


def _same(dead: DeadFacts, event: e.MessageEnqueued) -> bool:
    enqueued = dead.enqueued.event
    assert isinstance(enqueued, e.MessageEnqueued)
    return (enqueued.topic, enqueued.payload, enqueued.guarantee, enqueued.options) == (
        event.topic,
        event.payload,
        event.guarantee,
        event.options,
    )
