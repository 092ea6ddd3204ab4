"""Given / When / Then for the pure decider: past events, a command, the events and the reply that come out of it.

Every step ends with the state checking itself and being compared with the fold of all its events (I4). Each decision is
also made from two more states with the same events, which nobody looks at but who decides: in one of them messages wait
unplaced as often as they may, in the other they never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import NOTHING, Context, Decision, decide, decide_dispatch, decide_tick, next_dispatch
from mpreg_mq.actors.decider.delivering import row_of_deliveries
from mpreg_mq.actors.decider.settling import acknowledge
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, MessageOptions
from mpreg_mq.projections import Messages, QueueState
from mpreg_mq.projections.everyday import delivered_and_acknowledged_in_a_row
from mpreg_mq.projections.lanes import Lane

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


class Placed(Messages):
    """Messages none of which ever waits unplaced."""

    __slots__ = ()

    def be_quick(self, lane: Lane) -> None:
        """Let all of them be placed."""


def _placed(events: Iterable[e.Event]) -> QueueState:
    state = QueueState()
    state.messages.__class__ = Placed
    state.apply_all(events)
    return state


class Scenario:
    """A queue named ``q`` without actors; its time starts at :data:`START` and moves only when it is told.

    ``history`` are all its events, ``fresh`` those of the latest step, ``reply`` what the latest command got.
    ``left_alone`` has messages wait unplaced only where they do by themselves, and until somebody looks.
    """

    def __init__(self, **configuration: Any) -> None:
        self.now = START
        self.durable_version = EVERYTHING
        self.state = QueueState()
        self.live = QueueState()
        self.placed = QueueState()
        self.left_alone = False
        self.placed.messages.__class__ = Placed
        self.history: list[e.Event] = []
        self.fresh: list[e.Event] = []
        self.reply: Any = None
        self.when(c.Open(QueueConfiguration("q", **configuration)))

    @property
    def context(self) -> Context:
        """What a decision knows now besides the state."""
        return Context(self.now, RUN, self.durable_version)

    def copy(self) -> Scenario:
        """Another queue with the same history at the same time."""
        copy = Scenario.__new__(Scenario)
        copy.__dict__.update(self.__dict__)
        copy.history = list(self.history)
        copy.state, copy.live, copy.placed = (
            QueueState.replay(self.history),
            QueueState.replay(self.history),
            _placed(self.history),
        )
        for state in (copy.state, copy.live, copy.placed):
            state.messages.promote(self.now)
        return copy

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
        assert decide(self.live, command, self.context) == decide(self.placed, command, self.context)
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
        self.live.apply(event)
        self.placed.apply(event)
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
        self._settle_live(described)

    def _settle_live(self, described: dict[str, Any]) -> None:
        """Compare the states that nobody looks at without looking, most of the time; let messages wait unplaced."""
        messages, placed = self.live.messages, self.placed.messages
        assert not placed.unplaced
        assert self.live.version == self.placed.version == self.state.version
        assert len(messages) == len(placed) == len(self.state.messages)
        assert messages.pending_count == placed.pending_count == self.state.messages.pending_count
        if self.left_alone:
            return
        if len(self.history) % 7 == 0:
            self.live.check()
            self.placed.check()
            assert self.live.describe() == described
            assert self.live.dump() == self.placed.dump()
        lanes = list(messages._lanes._shared.values())
        if lanes:
            messages.be_quick(lanes[len(self.history) % len(lanes)])

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
        context = self.context
        row = row_of_deliveries(self.live, context)
        # A look works out who is in which lane, which decides where two copies of a message come at once.
        self.placed.messages.lanes.front()
        self.fresh = []
        for accepted, delivery in islice(row.deliveries, most) if row is not None else ():
            assert next_dispatch(self.placed, context) == delivery
            assert accepted.message_id == delivery.message_id
            self.placed.apply(delivery)
            context.now += seconds_each
            ended = acknowledge(self.placed, delivery.message_id, delivery.subscriber_id, delivery.attempt, context)
            assert ended == (e.MessageAcknowledged(context.now, delivery.message_id, delivery.subscriber_id, True),)
            self.placed.apply(ended[0])
            self.state.apply(delivery)
            self.state.apply(ended[0])
            self.fresh += (delivery, *ended)
        if self.fresh:
            self.now = context.now
            delivered_and_acknowledged_in_a_row(self.live, self.fresh)
            self.history += self.fresh
        self._settle()
        return [(event.message_id, event.subscriber_id) for event in self.fresh_of(e.MessageDelivered)]

    def _until_nothing_moves(self, decider: Callable[[QueueState, Context], Decision]) -> None:
        while (decision := decider(self.state, self.context)).events:
            assert decider(self.live, self.context) == decider(self.placed, self.context)
            self.record(decision)
        # Which makes ready in them what is due.
        assert decider(self.live, self.context) == decider(self.placed, self.context) == NOTHING

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
