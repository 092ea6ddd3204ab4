"""Faulty projections."""

from __future__ import annotations

from typing import Any

from mpreg_mq.model import CircuitState
from mpreg_mq.projections.deadlines import DeadlineKind
from tests.support.mutants.mutant import Mutant, Wrap, returning

MESSAGES = "mpreg_mq.projections.messages:Messages"
SUBSCRIBER = "mpreg_mq.projections.subscribers:Subscriber.can_take"
WINDOW = "mpreg_mq.projections.deduplication:DeduplicationWindow"
DEFAULTS = "mpreg_mq.projections.message:Defaults.message"
STATISTICS = "mpreg_mq.projections.statistics:Statistics"


def _after(change: Any) -> Wrap:
    """The handler, and then something more."""

    def wrap(handler: Any) -> Any:
        def mutated(self: Any, event: Any) -> None:
            handler(self, event)
            change(self, event)

        return mutated

    return wrap


def _made(change: Any) -> Wrap:
    """Messages as they are made, changed."""

    def wrap(make: Any) -> Any:
        def mutated(self: Any, *arguments: Any) -> Any:
            message = make(self, *arguments)
            change(message)
            return message

        return mutated

    return wrap


def _jumps(handler: Any) -> Any:
    def mutated(self: Any, event: Any) -> None:
        message = self.get(event.message_id)
        if message is not None and message.group_id is None and message.members is None:
            message.rank -= 1000.0
        handler(self, event)

    return mutated


def _group_goes_on(self: Any, event: Any) -> None:
    message = self.get(event.message_id)
    if message.group_id is None:
        return
    for _, _, other in self._groups[message.group_id]:
        if not other.started and other.slot.lane is None and other.slot.timer is None:
            self._queue(other.slot, event.at)
            return


def _never_expires(message: Any) -> None:
    message.expires_at = None


def _at_once(message: Any) -> None:
    message.slot.due_at = message.event.at


def _one_more(message: Any) -> None:
    message.max_attempts += 1


def _early(add: Any) -> Any:
    def mutated(self: Any, when: float, kind: Any, target: Any) -> Any:
        return add(self, when - 1.0 if kind is DeadlineKind.LEASE else when, kind, target)

    return mutated


def _holds_for_ever(holder: Any) -> Any:
    ever: dict[tuple[int, str], str] = {}

    def mutated(self: Any, key: str, now: float) -> str | None:
        ever.update(((id(self), held), message_id) for held, (_, message_id) in self._held.items())
        return ever.get((id(self), key))

    return mutated


def _without_limit(can_take: Any) -> Any:
    return lambda self: bool(self.subscriptions) and self.circuit is CircuitState.CLOSED


def _while_open(can_take: Any) -> Any:
    return lambda self: bool(self.subscriptions) and len(self.held) < self.max_in_flight


def _many_probes(can_take: Any) -> Any:
    return lambda self: (
        bool(self.subscriptions) and len(self.held) < self.max_in_flight and self.circuit is not CircuitState.OPEN
    )


def _busiest(choose: Any) -> Any:
    def mutated(self: Any, lane: Any) -> Any:
        able = [found for key in lane.members if (found := self._subscribers.get(key)) is not None]
        able = [found for found in able if not found.pull and found.can_take()]
        return max(able, key=lambda found: (len(found.held), found.last_used), default=None)

    return mutated


def _everybody(audience: Any) -> Any:
    return lambda self, topic: tuple(sorted(found.id for found in self if found.present))


def _anybody(slot_for: Any) -> Any:
    def mutated(self: Any, subscriber_id: str) -> Any:
        return self.slot if self.members is None else self.members.get(subscriber_id)

    return mutated


def _youngest(pending_by_age: Any) -> Any:
    return lambda self: iter([message for message in self if not message.live][::-1])


def _forgets_a_lease(restore: Any) -> Any:
    def mutated(self: Any, dump: Any, *arguments: Any) -> None:
        restore(self, dump, *arguments)
        for message in self.leased():
            for slot in message.slots():
                if slot.lease is not None:
                    self._end_lease(slot)
                    return

    return mutated


def _counts_twice(self: Any, event: Any) -> None:
    self.counts.messages_sent += 1


PROJECTION_MUTANTS: tuple[Mutant, ...] = (
    Mutant("a retry jumps the priority order", "O2", f"{MESSAGES}._on_requeued", _jumps),
    Mutant("a retry jumps the send order", "O1", f"{MESSAGES}._on_requeued", _jumps, "groups"),
    Mutant("a retry lets its group go on", "O1", f"{MESSAGES}._on_requeued", _after(_group_goes_on), "groups"),
    Mutant("an expired message is delivered", "T1", DEFAULTS, _made(_never_expires)),
    Mutant("a delay is forgotten", "O3", DEFAULTS, _made(_at_once)),
    Mutant("one attempt too many", "R1", DEFAULTS, _made(_one_more)),
    Mutant("a timer fires early", "L1", "mpreg_mq.projections.deadlines:Deadlines.add", _early),
    Mutant("stored fingerprints are never pruned", "U1", f"{WINDOW}.holder", _holds_for_ever),
    Mutant("the window forgets its keys", "U1", f"{WINDOW}.holder", returning(None)),
    Mutant("max_in_flight is not looked at", "C2", SUBSCRIBER, _without_limit),
    Mutant("an open circuit lets messages through", "R3", SUBSCRIBER, _while_open),
    Mutant("a half-open circuit lets everything through", "R3", SUBSCRIBER, _many_probes),
    Mutant("the busiest subscriber is given the next", "G2", "mpreg_mq.projections.lanes:Lanes._choose", _busiest),
    Mutant("everybody gets every topic", "G6", "mpreg_mq.projections.subscribers:Subscribers.audience", _everybody),
    Mutant("anybody may acknowledge", "L2", "mpreg_mq.projections.message:Message.slot_for", _anybody),
    Mutant("a full queue drops its youngest", "C1", f"{MESSAGES}.pending_by_age", _youngest),
    Mutant("a paused queue delivers", "C4", "mpreg_mq.projections.queue_state:QueueState._on_paused", returning(None)),
    Mutant("a snapshot forgets a lease", "I4", f"{MESSAGES}.restore", _forgets_a_lease),
    Mutant("a message is counted twice", "I4", f"{STATISTICS}._on_enqueued", _after(_counts_twice)),
)
