"""Given / When / Then for the pure decider: events in, a command, the events and the reply that come out.

After every step the state checks itself, and :meth:`Scenario.finish` compares it with the fold of all its events.
"""

from __future__ import annotations

from typing import Any

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, Decision, decide, decide_admit, decide_dispatch, decide_tick
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions
from mpreg_mq.projections import QueueState

START = 1000.0


def callback(message: object) -> None:
    """Stands for a push subscriber's callback, which the decider never calls."""


class Scenario:
    """A queue without actors; ``now`` moves only by :meth:`advance`."""

    def __init__(self, **configuration: Any) -> None:
        self.now = START
        self.state = QueueState()
        self.history: list[e.Event] = []
        self.fresh: list[e.Event] = []
        self.durable = 1 << 62
        self.when(c.Open(QueueConfiguration("q", **configuration)))

    @property
    def context(self) -> Context:
        return Context(self.now, "r", self.durable)

    def record(self, decision: Decision) -> Any:
        for event in decision.events:
            self.state.apply(event)
            self.history.append(event)
            self.fresh.append(event)
        self.state.check()
        return decision.reply

    def when(self, command: Any) -> Any:
        """Carry out one command; what it produced is in :attr:`fresh`."""
        self.fresh = []
        return self.record(decide(self.state, command, self.context))

    def send(
        self, topic: str = "t", guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE, **options: Any
    ) -> str:
        """Have a message accepted; its id."""
        key = options.get("deduplication_id")
        given = MessageOptions(**options) if options else DEFAULT_OPTIONS
        result = self.when(c.Send(topic, b"\xa1p", guarantee, given, key))
        assert result.success, result
        message_id: str = result.message_id.id
        return message_id

    def subscribe(self, subscriber_id: str, pattern: str = "#", *, pull: bool = False, **arguments: Any) -> str:
        """Subscribe and, as the actor does, admit the newcomer to open quorums."""
        subscription_id = f"{subscriber_id}-{len(self.history)}"
        self.when(c.Subscribe(subscriber_id, subscription_id, pattern, None if pull else callback, **arguments))
        self.record(decide_admit(self.state, subscriber_id, self.context))
        return subscription_id

    def dispatch(self) -> list[tuple[str, str]]:
        """Act on what is due and deliver until nothing moves; (message, subscriber) of each delivery."""
        self.fresh = []
        for decider in (decide_tick, decide_dispatch):
            while True:
                decision = decider(self.state, self.context)
                self.record(decision)
                if not decision.events:
                    break
        return [(x.message_id, x.subscriber_id) for x in self.fresh if isinstance(x, e.MessageDelivered)]

    def advance(self, seconds: float) -> list[tuple[str, str]]:
        """Move on through every deadline at its moment; the deliveries on the way."""
        target = self.now + seconds
        delivered: list[tuple[str, str]] = []
        happened: list[e.Event] = []
        while (first := self.state.messages.deadlines.first()) is not None and first.when <= target:
            self.now = max(self.now, first.when)
            delivered += self.dispatch()
            happened += self.fresh
        self.now = target
        delivered += self.dispatch()
        self.fresh = happened + self.fresh
        return delivered

    def acknowledge(self, message_id: str, subscriber_id: str) -> bool:
        counted: bool = self.when(c.Acknowledge(message_id, subscriber_id))
        return counted

    def fail(self, message_id: str, subscriber_id: str, delay_seconds: float | None = None) -> bool:
        counted: bool = self.when(c.NegativeAcknowledge(message_id, subscriber_id, "boom", delay_seconds))
        return counted

    def kinds(self) -> list[str]:
        """Names of the events since the last step began."""
        return [type(event).__name__ for event in self.fresh]

    def events_of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.history if type(event) is kind]

    def finish(self) -> None:
        """The state equals the fold of its events, from the start and from any point on (I4)."""
        assert QueueState.replay(self.history).describe() == self.state.describe()
