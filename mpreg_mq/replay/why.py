"""Why a message is where it is, from the rules that the queue decides by.

The queue's own decider is asked first: what it would do now, with nothing else happening. A message that moves then
is held up by nothing. Otherwise the state in which nothing moves any more shows what every message waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import partial

import attrs

from mpreg_mq.actors.decider import Context, decide_dispatch, decide_tick
from mpreg_mq.arguments import MessageReference, id_text
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.options import require
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_state
from mpreg_mq.replay.blockers import Blocker, Way, common_blockers, ways
from mpreg_mq.replay.endings import ending, refusal
from mpreg_mq.replay.formats import format_seconds, format_time, plural
from mpreg_mq.replay.groups import is_entered, whole_decisions
from mpreg_mq.replay.moments import Moment, moment_problem
from mpreg_mq.replay.records import Progress, folding, read, silent, stopped
from mpreg_mq.replay.sightings import Sightings
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.subjects import Found, FoundKey, find, find_message
from mpreg_mq.replay.wording import in_words, message_ids

MAX_REDRIVES = 100
"""Redrives that an explanation follows."""


class Standing(Enum):
    """Where the subject of an explanation stands."""

    WAITING = "waiting"
    """Something keeps it from moving."""
    READY = "ready"
    """Nothing does: the queue acts on it with its next turn."""
    FINISHED = "finished"
    """It has come to its end."""
    REFUSED = "refused"
    """It was never accepted."""
    KEY = "key"
    """It is a deduplication key."""
    OTHER = "other"
    """It is an event about something else."""


@attrs.frozen
class Explanation:
    """Why, at ``now``: an answer in plain words, and what it rests on.

    A message that waits moves when all of ``common`` and, for any one of ``ways``, all of its blockers are removed.
    ``facts`` are worth knowing besides. ``then`` explains the message that a dead letter was redriven as.
    """

    queue: str
    subject: str
    now: float
    standing: Standing
    answer: str
    common: tuple[Blocker, ...] = ()
    ways: tuple[Way, ...] = ()
    facts: tuple[str, ...] = ()
    then: Explanation | None = None

    @property
    def blockers(self) -> tuple[Blocker, ...]:
        """Everything that stands in some way, each once."""
        return tuple(dict.fromkeys((*self.common, *(blocker for way in self.ways for blocker in way.blockers))))


@again_if_overtaken
def why(
    log: EventLog,
    subject: MessageReference,
    *,
    at: Moment | None = None,
    queue: str | None = None,
    progress: Progress = silent,
) -> Explanation:
    """Why the message that ``subject`` names is where it is, at a moment or else when the log ends.

    A position within a decision is taken as the end of that, which a fact then tells: before its end a queue is in no
    state that it would act on.

    Instead of a message ``subject`` may be a deduplication key, or ``@1234``, the position of a refused send.
    Two passes over the log.

    Raises:
        InvalidOptionError: ``at`` is no moment.
        MessageNotFoundError: it names nothing, or several messages.
        ReadingStoppedError: the log cannot be read to its end.
    """
    require("at", moment_problem, at)
    return _why(log, id_text(subject), at, queue, progress, MAX_REDRIVES)


def _why(
    log: EventLog, subject: str, at: Moment | None, queue: str | None, progress: Progress, redrives: int
) -> Explanation:
    found = find(log, subject, until=at, queue=queue, progress=progress)
    if isinstance(found, RecordedEvent):
        ids = message_ids(found.event)
        name = found.stream.removeprefix(QUEUE_STREAMS)
        if len(ids) == 1:
            return _why(log, ids[0], at, name, progress, redrives)
        at = at or Moment(position=found.position)
    else:
        name = found.queue
    state, seen, last_at, end = _fold(log, name, at, progress)
    note: tuple[str, ...] = ()
    if at is not None and at.position is not None and end > at.position:
        note = (f"position {at.position:,} is within a decision; this is how it was at its end, position {end:,}",)
        at = Moment(position=end)
        if isinstance(found, Found):
            found = find_message(log, found.message_id, until=at, queue=name, progress=progress)
    answer = _explain_found(log, found, subject, state, seen, last_at, at, progress, redrives)
    return attrs.evolve(answer, facts=(*answer.facts, *note)) if note else answer


def _explain_found(
    log: EventLog,
    found: Found | FoundKey | RecordedEvent,
    subject: str,
    state: QueueState,
    seen: Sightings,
    last_at: float,
    at: Moment | None,
    progress: Progress,
    redrives: int,
) -> Explanation:
    now = last_at if at is None or at.time is None else max(at.time, last_at)
    if isinstance(found, FoundKey):
        return _explain_key(state, found, now)
    if isinstance(found, RecordedEvent):
        standing, answer = refusal(found.event, state, now)
        name = found.stream.removeprefix(QUEUE_STREAMS)
        return Explanation(name, subject, now, Standing.REFUSED if standing else Standing.OTHER, answer)
    if state.messages.get(found.message_id) is not None:
        return explain(state, found.message_id, now, seen, facts=_facts(state, found, now))
    return _explain_finished(log, found, state, now, at, progress, redrives)


def _fold(
    log: EventLog, queue: str, until: Moment | None, progress: Progress
) -> tuple[QueueState, Sightings, float, int]:
    """The queue at a moment, or at the end of the decision that a position is within; its time, and its position."""
    base = base_position(log)
    state = base_state(log, QUEUE_STREAMS + queue, until)
    seen = Sightings(state.subscribers)
    position = 0
    with folding():
        if until is None or until.position is None:
            records = read(log, base=base, until=until, queue=queue, progress=progress)
        else:
            every = read(log, base=base, queue=queue, progress=progress)
            records = whole_decisions(every, until.position, partial(is_entered, state))
        for record in records:
            try:
                state.apply(record.event)
            except ProjectionError as error:
                raise stopped(log, position, error) from error
            seen.apply(record.event)
            position = record.position
    return state, seen, state.last_at, position


def explain(
    state: QueueState,
    message_id: MessageReference,
    now: float,
    seen: Sightings | None = None,
    *,
    facts: tuple[str, ...] = (),
) -> Explanation:
    """Why an unfinished message does not move at ``now``; the state is the caller's to give up, it is moved on.

    O(log n) for each message that the queue would act on first.

    Raises:
        KeyError: the state has no such unfinished message.
    """
    seen = Sightings() if seen is None else seen
    message_id = id_text(message_id)
    message = state.messages.get(message_id)
    if message is None:
        raise KeyError(message_id)
    queue = state.configuration.name
    for others, event in enumerate(let_act(state, now)):
        if message_id in message_ids(event):
            first = f", after {plural(others, 'other event')}" if others else ""
            text = f"ready: nothing holds it up; {_next_turn(event)} with the queue's next turn{first}"
            return Explanation(queue, message_id, now, Standing.READY, text, facts=facts)
    common = common_blockers(state, message, seen, now)
    possible = ways(state, message, seen, now)
    return Explanation(queue, message_id, now, Standing.WAITING, _answer(common, possible), common, possible, facts)


def let_act(state: QueueState, now: float) -> Iterator[e.Event]:
    """What the queue does at ``now`` while nobody asks it for anything; each event is applied before it is given.

    The same order as the queue's own turns: what is due first, then deliveries.
    """
    context = Context(max(now, state.last_at), "?")
    while True:
        decision = decide_tick(state, context)
        if not decision.events:
            decision = decide_dispatch(state, context)
        if not decision.events:
            return
        for event in decision.events:
            state.apply(event)
            yield event


def _next_turn(event: e.Event) -> str:
    if isinstance(event, e.MessageDelivered):
        return f"it goes to {event.subscriber_id}"
    return f"'{in_words(event)}' is recorded"


def _answer(common: tuple[Blocker, ...], possible: tuple[Way, ...]) -> str:
    words = [blocker.text for blocker in common]
    if possible and all(way.blockers for way in possible):
        texts = list(dict.fromkeys("; ".join(blocker.text for blocker in way.blockers) for way in possible))
        if len(texts) == 1:
            words.append(texts[0])
        else:
            words.append(f"{len(texts)} ways, none free: " + "; or ".join(texts))
    return "; and ".join(words)


def _facts(state: QueueState, found: Found, now: float) -> tuple[str, ...]:
    facts = []
    message = state.messages.get(found.message_id)
    accepted = message.event if message is not None else found.records[0].event
    if isinstance(accepted, e.MessageEnqueued):
        facts.append(
            f"accepted {format_time(accepted.at)} ({format_seconds(now - accepted.at)} ago) on {accepted.topic}"
        )
        if accepted.redriven_from:
            facts.append(f"made from the dead letter {accepted.redriven_from}")
    if message is not None and message.expires_at is not None:
        facts.append(f"its time to live ends {format_time(message.expires_at)}")
    if message is not None and message.members is not None:
        acknowledged = sorted(name for name, slot in message.members.items() if slot.acknowledged)
        used_up = sorted(name for name, slot in message.members.items() if slot.exhausted)
        facts.append(f"audience of {len(message.members)}: acknowledged by {', '.join(acknowledged) or 'nobody'}")
        if used_up:
            facts.append(f"attempts used up at {', '.join(used_up)}")
    return tuple(facts)


def _explain_key(state: QueueState, found: FoundKey, now: float) -> Explanation:
    held = state.deduplication.keys().get(found.key)
    holder = state.deduplication.holder(found.key, now)
    if holder is not None and held is not None:
        answer = (
            f"duplicate of {holder}: its key expires in {format_seconds(held[0] - now)} "
            f"({format_time(held[0])}), and until then a send with it is refused"
        )
    else:
        answer = "the key is free: a send with it is accepted"
    facts = tuple(
        f"refused at position {record.position}, {format_time(record.event.at)}" for record in found.refused[-5:]
    )
    if len(found.refused) > 5:
        facts = (f"{plural(len(found.refused), 'send')} refused; the last of them:", *facts)
    return Explanation(found.queue, found.key, now, Standing.KEY, answer, facts=facts)


def _explain_finished(
    log: EventLog,
    found: Found,
    state: QueueState,
    now: float,
    at: Moment | None,
    progress: Progress,
    redrives: int,
) -> Explanation:
    entry = state.dead_letters.get(found.message_id)
    story = [record.event for record in found.records] or ([] if entry is None else [entry.enqueued, entry.ended])
    answer, facts, redriven = ending(story, state, now)
    then = None
    if redriven is not None and redrives:
        then = _why(log, redriven.new_message_id, at, redriven.target_queue, progress, redrives - 1)
    return Explanation(found.queue, found.message_id, now, Standing.FINISHED, answer, facts=facts, then=then)
