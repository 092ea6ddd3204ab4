"""Short ways to write down what happened in a queue named ``q``, one event after another."""

from __future__ import annotations

from typing import Any

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import InvariantChecker, Rule, Violation, recorded
from mpreg_mq.invariants.facts import QueueFacts
from mpreg_mq.invariants.rules import ALL_RULES
from mpreg_mq.model import DeliveryGuarantee, MessageOptions

BY_ID = {rule.id: rule for rule in ALL_RULES}


class History:
    """Events at :attr:`now`, written down in the order of the calls; nothing checks that they make sense."""

    def __init__(self, **configuration: Any) -> None:
        self.now = 1000.0
        self.events: list[e.Event] = []
        self.configuration = QueueConfiguration("q", **configuration)
        self.add(e.QueueCreated(self.now, "q", self.configuration))

    def add(self, *events: e.Event) -> History:
        self.events += events
        return self

    def at(self, now: float) -> History:
        self.now = now
        return self

    def joined(self, name: str, pattern: str = "#", *, pull: bool = False, limit: int = 1000) -> History:
        return self.add(e.SubscriberJoined(self.now, name, f"{name}/1", pattern, limit, pull))

    def left(self, name: str, *, unsubscribed: bool = True) -> History:
        return self.add(e.SubscriberLeft(self.now, name, f"{name}/1", unsubscribed))

    def sent(
        self,
        message_id: str,
        topic: str = "t",
        guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        key: str | None = None,
        **options: Any,
    ) -> History:
        given = MessageOptions(**options)
        return self.add(e.MessageEnqueued(self.now, message_id, topic, b"\xa1p", guarantee, given, key))

    def delivered(self, message_id: str, name: str, attempt: int = 1, **changes: Any) -> History:
        seconds = self.configuration.default_acknowledgment_timeout_seconds
        fields: dict[str, Any] = {"subscription_id": f"{name}/1", "deadline": self.now + seconds, **changes}
        return self.add(e.MessageDelivered(self.now, message_id, name, attempt=attempt, **fields))

    def acknowledged(self, message_id: str, name: str, completes: bool = True) -> History:
        return self.add(e.MessageAcknowledged(self.now, message_id, name, completes))

    def failed(self, message_id: str, name: str, attempt: int = 1, error: str = "boom") -> History:
        return self.add(e.DeliveryFailed(self.now, message_id, name, attempt, error))

    def requeued(self, message_id: str, wait: float = 0.1, member: str | None = None) -> History:
        return self.add(e.MessageRequeued(self.now, message_id, self.now + wait, member))

    def dead(self, message_id: str, name: str | None = None, attempts: int = 1, error: str | None = "boom") -> History:
        return self.add(e.MessageDeadLettered(self.now, message_id, "because", error, attempts, name))

    def audience(self, message_id: str, *names: str) -> History:
        return self.add(e.AudienceFixed(self.now, message_id, names))

    # --- judging ------------------------------------------------------------------------------------------

    @property
    def records(self) -> list[RecordedEvent]:
        return recorded(self.events)

    def violations(self, *rules: type[Rule]) -> list[Violation]:
        """What the rules (or else all) say about it, whether or not they are asked about plain events."""
        return judged(self.records, *rules)

    def breaks(self, rule_id: str) -> Violation:
        """It breaks this rule, asked alone and among the others; the violation."""
        (violation, *_) = alone = self.violations(BY_ID[rule_id])
        assert {found.rule for found in alone} == {rule_id}
        assert violation in self.violations()
        assert violation.evidence
        return violation

    def keeps_all(self) -> None:
        """It breaks no rule."""
        assert self.violations() == []


def judged(records: list[RecordedEvent], *rules: type[Rule]) -> list[Violation]:
    """What the rules (or else all) say, which is the same when each is asked about each event (invariants/plain.py)."""
    shortened = InvariantChecker(rules or ALL_RULES).observe_all(records)
    thorough = InvariantChecker(rules or ALL_RULES, plain=False).observe_all(records)
    for stream in {record.stream for record in records}:
        assert _standing(shortened.facts(stream)) == _standing(thorough.facts(stream))
    violations = shortened.finish()
    assert violations == thorough.finish()
    return violations


def _standing(facts: QueueFacts | None) -> Any:
    """All that is known of a queue; with its counts of members, which have to be those that there are."""
    assert facts is not None
    messages = {}
    for message in facts.messages.values():
        slots = list(message.slots())
        assert message.acknowledgments == sum(slot.acknowledged is not None for slot in slots)
        assert message.exhausted == sum(slot.exhausted for slot in slots)
        assert message.answered == sum(slot.answered for slot in slots)
        messages[message.id] = (
            [getattr(message, name) for name in ("seq", "rank", "missed", "leases", "fixed", "started")],
            [
                [getattr(slot, name) for name in type(slot).__struct_fields__ if name not in ("message", "token")]
                for slot in slots
            ],
        )
    return facts.describe(), messages, list(facts.finished.items()), facts.previous, facts.leased
