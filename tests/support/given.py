"""Given / When / Then for the pure decider: past events, a command, the events and the reply that come out of it.

Every step ends with the state checking itself and being compared with the fold of all its events (I4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, Decision, decide, decide_dispatch, decide_tick, next_dispatch
from mpreg_mq.actors.decider.delivering import row_of_deliveries
from mpreg_mq.actors.decider.settling import acknowledge
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.everyday import delivered_and_acknowledged_in_a_row

START = 1000.0
RUN = "r"
EVERYTHING = 1 << 62

E = TypeVar("E", bound=e.Event)
Deliveries = list[tuple[str, str]]
"""(message id, subscriber id) of each delivery or lease, in order."""


def callback(message: object) -> None:
    """Stands for a push subscriber's callback, which the decider never calls."""


def named(number: int) -> str:
    """Id of the message that the scenario's queue accepts as its ``number``-th."""
    return f"{number}-{RUN}"


def by_handlers(events: Iterable[e.Event]) -> QueueState:
    """The fold of these events by the handlers of the projections alone, without any short way."""
    state = QueueState()
    for event in events:
        state.version += 1
        state.messages.version = state.version
        state.last_at = max(state.last_at, event.at)
        for projection in (state, *state.projections):
            handler = projection.handler(type(event))
            if handler is not None:
                handler(event)
    state.check()
    return state


class Scenario:
    """A queue named ``q`` without actors; its time starts at :data:`START` and moves only when it is told.

    ``history`` are all its events, ``fresh`` those of the latest step, ``reply`` what the latest command got.
    """

    def __init__(self, **configuration: Any) -> None:
        self.now = START
        self.durable_version = EVERYTHING
        self.state = QueueState()
        self.history: list[e.Event] = []
        self.fresh: list[e.Event] = []
        self.reply: Any = None
        self.when(c.Open(QueueConfiguration("q", **configuration)))

    @property
    def context(self) -> Context:
        """What a decision knows now besides the state."""
        return Context(self.now, RUN, self.durable_version)

    # --- given, when, then --------------------------------------------------------------------------------

    def given(self, *events: e.Event) -> Scenario:
        """These events happened."""
        self.fresh = []
        for event in events:
            self._apply(event)
            self.now = max(self.now, event.at)
        self._settle()
        return self

    def when(self, command: Any, *, at: float | None = None) -> Scenario:
        """Decide this command and record its events, ``at`` a moment (or else now)."""
        if at is not None:
            self.now = at
        self.fresh = []
        self.record(decide(self.state, command, self.context))
        return self

    def then(self, *events: e.Event) -> Scenario:
        """The latest step produced exactly these events."""
        assert tuple(self.fresh) == events
        return self

    def then_reply(self, reply: Any) -> Scenario:
        """The latest command was answered with this."""
        assert self.reply == reply
        return self

    def record(self, decision: Decision) -> Any:
        """Take the decision's events into the state; its reply."""
        for event in decision.events:
            self._apply(event)
        self.reply = decision.reply
        self._settle()
        return decision.reply

    def _apply(self, event: e.Event) -> None:
        self.state.apply(event)
        self.history.append(event)
        self.fresh.append(event)

    def _settle(self) -> None:
        self.state.check()
        described = self.state.describe()
        replayed = QueueState.replay(self.history)
        assert replayed.describe() == described
        assert by_handlers(self.history).dump() == replayed.dump(), "the short ways come to what the handlers do"
        restored = QueueState.restore(self.state.dump())
        assert restored is not None
        restored.check()
        assert restored.describe() == described
        # What comes next is decided from the snapshot.
        self.state = restored

    # --- shorter ways to say it ---------------------------------------------------------------------------

    def ask(self, command: Any) -> Any:
        """Decide and record a command; its reply."""
        return self.when(command).reply

    def send(
        self,
        topic: str = "t",
        guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> str:
        """Have a message accepted; its id."""
        given = MessageOptions(**options) if options else DEFAULT_OPTIONS
        result = self.ask(c.Send(topic, b"\xa1p", guarantee, given, options.get("deduplication_id")))
        assert result.success, result
        message_id: str = result.message_id.id
        return message_id

    def subscribe(self, subscriber_id: str, pattern: str = "#", *, pull: bool = False, **arguments: Any) -> str:
        """Subscribe; the subscription's id."""
        subscription_id = f"{subscriber_id}/{len(self.history)}"
        self.when(c.Subscribe(subscriber_id, subscription_id, pattern, None if pull else callback, **arguments))
        return subscription_id

    def receive(self, subscriber_id: str, max_messages: int = 1, **arguments: Any) -> list[str]:
        """Ids of the messages leased to a pull subscriber."""
        taken: list[str] = self.ask(c.Receive(subscriber_id, max_messages, **arguments))
        return taken

    def acknowledge(self, message_id: str, subscriber_id: str, attempt: int | None = None) -> bool:
        """Whether the acknowledgment counted."""
        counted: bool = self.ask(c.Acknowledge(message_id, subscriber_id, attempt))
        return counted

    def fail(
        self, message_id: str, subscriber_id: str, delay_seconds: float | None = None, error: str = "boom"
    ) -> bool:
        """Whether the refusal counted."""
        counted: bool = self.ask(c.NegativeAcknowledge(message_id, subscriber_id, error, delay_seconds))
        return counted

    def dispatch(self) -> Deliveries:
        """Act on what is due and deliver until nothing moves; the deliveries."""
        self.fresh = []
        self._until_nothing_moves(decide_tick)
        self._until_nothing_moves(decide_dispatch)
        return [(event.message_id, event.subscriber_id) for event in self.fresh_of(e.MessageDelivered)]

    def deliver_row(self, most: int = 100, seconds_each: float = 0.0) -> Deliveries:
        """Deliver in a row, as far as that goes, with callbacks that take so long and acknowledge; the deliveries.

        Each is what a dispatch decides once the one before was acknowledged, and all of them are folded in at once.
        """
        twin = QueueState.restore(self.state.dump())
        assert twin is not None
        context = self.context
        row = row_of_deliveries(self.state, context)
        self.fresh = []
        for _, delivery in islice(row.deliveries, most) if row is not None else ():
            assert next_dispatch(twin, context) == delivery
            twin.apply(delivery)
            context.now += seconds_each
            ended = acknowledge(twin, delivery.message_id, delivery.subscriber_id, delivery.attempt, context)
            assert ended == (e.MessageAcknowledged(context.now, delivery.message_id, delivery.subscriber_id, True),)
            twin.apply(ended[0])
            self.fresh += (delivery, *ended)
        if self.fresh:
            self.now = context.now
            delivered_and_acknowledged_in_a_row(self.state, self.fresh)
            self.history += self.fresh
            assert self.state.dump() == twin.dump()
        self._settle()
        return [(event.message_id, event.subscriber_id) for event in self.fresh_of(e.MessageDelivered)]

    def _until_nothing_moves(self, decider: Callable[[QueueState, Context], Decision]) -> None:
        while (decision := decider(self.state, self.context)).events:
            self.record(decision)

    def advance(self, seconds: float) -> Deliveries:
        """Let time pass, stopping at every deadline to act and deliver; the deliveries on the way."""
        target = self.now + seconds
        delivered: Deliveries = []
        happened: list[e.Event] = []
        while (first := self.state.messages.deadlines.first()) is not None and first.when <= target:
            self.now = max(self.now, first.when)
            delivered += self.dispatch()
            happened += self.fresh
        self.now = target
        delivered += self.dispatch()
        self.fresh = happened + self.fresh
        return delivered

    def leases(self) -> Deliveries:
        """Every lease that is open now."""
        return [
            (message.id, slot.lease.subscriber_id)
            for message in self.state.messages.leased()
            for slot in message.slots()
            if slot.lease is not None
        ]

    def kinds(self) -> list[str]:
        """Names of the latest step's events."""
        return [type(event).__name__ for event in self.fresh]

    def fresh_of(self, kind: type[E]) -> list[E]:
        """The latest step's events of this kind."""
        return [event for event in self.fresh if isinstance(event, kind)]

    def events_of(self, kind: type[E]) -> list[E]:
        """All events of this kind so far."""
        return [event for event in self.history if isinstance(event, kind)]
