"""Dead letters of a log that no process has open: list, redrive and purge them, by the queue's own decider (D1)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import attrs

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, decide
from mpreg_mq.actors.decider.administration import up_to
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, Event, EventLog
from mpreg_mq.events.types import MessageRejected
from mpreg_mq.projections import DeadEntry, QueueState
from mpreg_mq.replay.records import Progress, silent
from mpreg_mq.replay.source import QUEUE_STREAMS
from mpreg_mq.replay.travel import replay, require_queue
from mpreg_mq.replay.why import explain, let_act
from mpreg_mq.replay.wording import in_words
from mpreg_mq.replay.wording import message_ids as message_ids_of


@attrs.frozen
class Redriven:
    """A dead letter and the message that was, or would be, made from it; ``then`` says what comes next for that."""

    queue: str
    message_id: str
    topic: str
    target_queue: str
    new_message_id: str
    then: str


def dead_letters(
    log: EventLog, *, queue: str | None = None, progress: Progress = silent
) -> Iterator[tuple[str, DeadEntry]]:
    """Dead letters with the name of their queue, oldest first in each.

    Raises:
        EventLogError: there is no such queue.
        ReadingStoppedError: the log cannot be read to its end.
    """
    for name, state in replay(log, queue=queue, progress=progress).states.items():
        for entry in state.dead_letters:
            yield name, entry


def redrive(
    log: EventLog,
    queue: str,
    message_ids: Collection[str] | None = None,
    *,
    limit: int | None = None,
    target_queue: str | None = None,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    progress: Progress = silent,
    refused: Callable[[str], None] = lambda detail: None,
) -> list[Redriven]:
    """Accept dead letters again, in their queue or another, oldest first and while there is room.

    ``message_ids`` of None means all, ``limit`` how many at most. What is beyond the queue's limits stays a dead
    letter, is not counted, and ``refused`` is told why. One commit for all of it; a dry run decides the same and
    commits nothing.

    Raises:
        EventLogError: there is no such queue or dead letter, or somebody appended to the log meanwhile.
    """
    require_queue(log, queue)
    target = queue if target_queue is None else target_queue
    require_queue(log, target)
    states = replay(log, progress=progress).states
    source, into = states[queue], states[target]
    chosen = _chosen(log, queue, source, message_ids)
    now = clock()
    context = Context(max(now, source.last_at, into.last_at), secrets.token_hex(6))
    if source is into:
        decision = decide(source, c.Redrive(None if message_ids is None else tuple(chosen), limit), context)
        batch = [Append(QUEUE_STREAMS + queue, source.version, decision.events)]
        pairs: list[tuple[str, str]] = decision.reply
    else:
        entries = tuple(up_to(limit, (entry.enqueued for entry in chosen.values()), into.configuration))
        accepted = decide(into, c.AcceptRedriven(entries, queue), context)
        pairs = accepted.reply
        left = decide(source, c.RecordRedriven(tuple(pairs), target), context)
        batch = [
            Append(QUEUE_STREAMS + target, into.version, accepted.events),
            Append(QUEUE_STREAMS + queue, source.version, left.events),
        ]
    if pairs and not dry_run:
        log.append(batch)
        log.sync()
    for append in batch:
        for event in append.events:
            if isinstance(event, MessageRejected):
                refused(event.detail)
        _apply(into if append.stream == QUEUE_STREAMS + target else source, append.events)
    nexts = _next(into, context.now)
    topics = {message_id: entry.enqueued.topic for message_id, entry in chosen.items()}
    return [
        Redriven(queue, dead, topics[dead], target, new, nexts.get(new) or explain(into, new, context.now).answer)
        for dead, new in pairs
    ]


def _next(state: QueueState, now: float) -> dict[str, str]:
    """What the queue would do first with each message that it can move at once; the state is moved on."""
    state.messages.promote(now)
    found: dict[str, str] = {}
    for event in let_act(state, now):
        for message_id in message_ids_of(event):
            found.setdefault(message_id, in_words(event))
    return found


def purge(
    log: EventLog,
    queue: str,
    message_ids: Collection[str] | None = None,
    *,
    clock: Callable[[], float] = time.time,
    progress: Progress = silent,
) -> list[str]:
    """Remove dead letters for good; their ids. ``message_ids`` of None means all.

    Raises:
        EventLogError: there is no such queue or dead letter, or somebody appended to the log meanwhile.
    """
    require_queue(log, queue)
    state = replay(log, queue=queue, progress=progress).states[queue]
    chosen = _chosen(log, queue, state, message_ids)
    decision = decide(state, c.PurgeDeadLetters(tuple(chosen)), Context(max(clock(), state.last_at)))
    if decision.events:
        log.append([Append(QUEUE_STREAMS + queue, state.version, decision.events)])
        log.sync()
    return list(chosen)


def _chosen(log: EventLog, queue: str, state: QueueState, message_ids: Collection[str] | None) -> dict[str, DeadEntry]:
    entries = {entry.ended.message_id: entry for entry in state.dead_letters}
    if message_ids is None:
        return entries
    chosen = {}
    for text in message_ids:
        exact = [name for name in entries if text in (name, name.split("-", 1)[0])]
        found = exact or [name for name in entries if name.startswith(text)]
        if len(found) != 1:
            what = "no dead letter" if not found else f"{len(found)} dead letters"
            raise EventLogError(
                f"{log.location}: queue {queue!r} has {what} whose id is or begins with {text!r}; "
                "mpreg-mq dlq list shows them"
            )
        chosen[found[0]] = entries[found[0]]
    return chosen


def _apply(state: QueueState, events: Sequence[Event]) -> None:
    for event in events:
        state.apply(event)
