"""Short ways to write down what happened in a queue named ``q``, one event after another."""

from __future__ import annotations

from typing import Any

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import InvariantChecker, Rule, Violation, recorded
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
        """What the rules (or else all) say about it."""
        return InvariantChecker(rules or ALL_RULES).observe_all(self.records).finish()

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
