"""The dead letters of a queue as its users have them: to look at, and to accept again (D1)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider.sending import limits_problem
from mpreg_mq.actors.messages import HoldDeadLetters
from mpreg_mq.errors import QueueClosedError
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.model import DeadLetter, MessageId
from mpreg_mq.projections import DeadEntry, QueueState

if TYPE_CHECKING:
    from mpreg_mq.actors.queue_actor import QueueActor
    from mpreg_mq.queue import MessageQueue
    from mpreg_mq.queue_inspection import QueueInspection


class DeadLetterQueue(Sequence[DeadLetter]):
    """The dead letters of a queue, oldest first; always those of the moment, each read a copy (D1)."""

    def __init__(self, queue: QueueInspection) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return self._queue._inspect(lambda state, _: len(state.dead_letters))

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(self._queue.list_dead_letters())

    @overload
    def __getitem__(self, index: int) -> DeadLetter: ...
    @overload
    def __getitem__(self, index: slice) -> list[DeadLetter]: ...
    def __getitem__(self, index: int | slice) -> DeadLetter | list[DeadLetter]:
        return self._queue.list_dead_letters()[index]

    def __repr__(self) -> str:
        return f"<DeadLetterQueue of {self._queue.config.name!r}: {len(self)} messages>"


async def redrive(
    source: MessageQueue, target: MessageQueue, ids: tuple[str, ...] | None, limit: int | None
) -> list[MessageId]:
    """Accept dead letters of ``source`` again in ``target``; the ids of the new messages.

    Into another queue it goes on to its end even if whoever waits for it is cancelled: between its two steps the
    messages are in both queues.
    """
    if target is source:
        pairs = await source._ask(c.Redrive(ids, limit))
    else:
        pairs = await asyncio.shield(asyncio.ensure_future(_into_another(source, target, ids, limit)))
    # Nothing is asked for any more: whoever does not hear of the new messages would redrive them again.
    at = target._actor.state.last_at
    return [MessageId(new, at, target._name) for _, new in pairs]


async def _into_another(
    source: MessageQueue, target: MessageQueue, ids: tuple[str, ...] | None, limit: int | None
) -> list[tuple[str, str]]:
    """Have ``target`` accept dead letters, and ``source`` let go of them then; (dead, new) ids."""
    holder: asyncio.Task[Any] | None = asyncio.current_task()
    assert holder is not None
    try:
        hold = HoldDeadLetters(ids, limit, holder, target.config)
        entries: tuple[MessageEnqueued, ...] = await source._ask(hold)
        pairs: list[tuple[str, str]] = await target._ask(c.AcceptRedriven(entries, source._name)) if entries else []
        if pairs:
            try:
                await source._ask(c.RecordRedriven(tuple(pairs), target._name))
            except QueueClosedError:
                # A queue that was deleted meanwhile has no dead letters that could stay behind.
                if not source._actor.state.deleted:
                    raise
        return pairs
    finally:
        source._actor.redrives.pop(holder, None)


async def finish_redrives(source: QueueActor) -> None:
    """Wait for the redrives of ``source`` that run on this loop, which would find a closed queue otherwise."""
    loop = asyncio.get_running_loop()
    running = [holder for holder in source.redrives.copy() if holder.get_loop() is loop]
    await asyncio.gather(*running, return_exceptions=True)


async def would_redrive(
    source: MessageQueue, target: MessageQueue, ids: tuple[str, ...] | None, limit: int | None
) -> list[MessageId]:
    """The ids of the dead letters that :func:`redrive` would take now."""
    room, configuration = await target._look(
        lambda state, _: (max(0, state.configuration.max_size - state.messages.pending_count), state.configuration)
    )
    chosen = await source._look(lambda state, _: [entry.enqueued for entry in _named(state, ids)])
    fitting = (one for one in chosen if limits_problem(configuration, one.payload, one.options) is None)
    most = room if limit is None else min(room, limit)
    return [MessageId(one.message_id, one.at, source._name) for one in islice(fitting, most)]


def _named(state: QueueState, ids: tuple[str, ...] | None) -> list[DeadEntry]:
    wanted = None if ids is None else set(ids)
    return [entry for entry in state.dead_letters if wanted is None or entry.enqueued.message_id in wanted]
