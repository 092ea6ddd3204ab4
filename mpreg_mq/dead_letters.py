"""The dead letters of a queue as its users have them: to look at, and to accept again (D1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from mpreg_mq.actors import commands as c
from mpreg_mq.model import DeadLetter, MessageId
from mpreg_mq.projections import DeadEntry, QueueState

if TYPE_CHECKING:
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
    """Accept dead letters of ``source`` again in ``target``; the ids of the new messages."""
    if target is source:
        pairs = await source._ask(c.Redrive(ids, limit))
    else:
        entries = source._inspect(lambda state, _: tuple(entry.enqueued for entry in _named(state, ids)[:limit]))
        pairs = await target._ask(c.AcceptRedriven(entries, source._name))
        await source._ask(c.RecordRedriven(tuple(pairs), target._name))
    return [MessageId(new, source_node=target._name) for _, new in pairs]


def would_redrive(
    source: MessageQueue, target: MessageQueue, ids: tuple[str, ...] | None, limit: int | None
) -> list[MessageId]:
    """The ids of the dead letters that :func:`redrive` would take now."""
    room = target._inspect(lambda state, _: max(0, state.configuration.max_size - state.messages.pending_count))
    chosen = source._inspect(lambda state, _: [entry.enqueued.message_id for entry in _named(state, ids)[:limit]])
    return [MessageId(message_id, source_node=source._name) for message_id in chosen[:room]]


def _named(state: QueueState, ids: tuple[str, ...] | None) -> list[DeadEntry]:
    wanted = None if ids is None else set(ids)
    return [entry for entry in state.dead_letters if wanted is None or entry.enqueued.message_id in wanted]
