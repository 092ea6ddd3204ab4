"""What a queue actor is sent besides commands: requests about its own running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from mpreg_mq.actors.commands import Subscribe
from mpreg_mq.actors.futures import Waiter
from mpreg_mq.actors.submissions import Unknown
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryResult
from mpreg_mq.projections import QueueState


@attrs.frozen
class Inspect:
    """Call a function with the state and the time, in the actor's turn; replies what it returns."""

    function: Callable[[QueueState, float], Any]


@attrs.frozen(eq=False)
class Join:
    """Subscribe whoever is about to fetch, unless it has a subscription by then that it can fetch by."""

    subscribe: Subscribe


@attrs.frozen(eq=False)
class HoldDeadLetters:
    """Dead letters that ``holder`` has another queue accept; replies with the events that accepted them.

    Until ``holder`` is done they are neither redriven nor purged by anybody else (D1). ``message_ids`` of None means
    all, ``limit`` of None as many as there are; what is beyond the limits of ``target`` is there to be refused, and is
    not counted.
    """

    message_ids: tuple[str, ...] | None
    limit: int | None
    holder: asyncio.Task[Any]
    target: QueueConfiguration


class Unsent(msgspec.Struct, eq=False):
    """Events of one loop iteration that go to the journal together, and who waits for their commit."""

    before: int
    planned: bool
    events: list[e.Event] = msgspec.field(default_factory=list)
    waiters: list[tuple[Waiter, Any]] = msgspec.field(default_factory=list)
    outcome: BaseException | Unknown | None = Unknown.YET
    """See :class:`~mpreg_mq.actors.submissions.Record`."""


@attrs.frozen(eq=False)
class Committed:
    """An append of this actor came to its end: its events are durable, or ``error`` says why not."""

    append: Unsent
    error: BaseException | None


@attrs.frozen(eq=False)
class SeenTo:
    """The journal has seen to these appends, whose ends may have been told to a loop that was left."""

    appends: list[Unsent]

    def committed(self) -> list[Committed]:
        """What became of each; not of those whose loop cannot have been left."""
        return [Committed(append, append.outcome) for append in self.appends if not isinstance(append.outcome, Unknown)]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Reply to a send whose commit was waited for on the loop: the sender has to let others do something now."""

    result: DeliveryResult


@attrs.frozen
class Turn:
    """Act on what is due and deliver what can be delivered, for one slice of time."""


@attrs.frozen
class TakeIn:
    """Accept the sends that were gathered."""


@attrs.frozen(eq=False)
class Abandon:
    """Whoever gave this command has gone; do not do for them what was not done yet.

    It is the very object that was given: its reply may have been handed on from one future to another.
    """

    command: Any


@attrs.frozen
class BeginClose:
    """Take no more sends and deliver no more; replies once no callback runs (C3)."""


@attrs.frozen
class FinishClose:
    """End leases and subscriptions because of ``reason``; replies once everything is committed (C3)."""

    reason: str


@attrs.frozen
class Start:
    """Begin to deliver, where the queue was made without."""


@attrs.frozen
class Recover:
    """End what died with the process before: its callbacks' leases and its push subscriptions."""


TURN = Turn()
TAKE_IN = TakeIn()
