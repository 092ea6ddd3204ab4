"""The life of one message: every event about it, across redrives, with the time since the one before."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mpreg_mq.arguments import MessageReference, id_text
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.options import require
from mpreg_mq.replay.base import again_if_overtaken
from mpreg_mq.replay.endings import ends
from mpreg_mq.replay.moments import Moment, moment_problem
from mpreg_mq.replay.records import Progress, read, silent
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.subjects import MessageNotFoundError, find_message
from mpreg_mq.replay.wording import in_words, message_ids

ORIGIN_HEADERS: Mapping[str, str] = {
    "mpreg-mq.publisher": "publisher",
    "mpreg-mq.message-id": "published_as",
    "mpreg-mq.published-at": "published_at",
    "mpreg-mq.route": "route",
    "mpreg-mq.trail": "trail",
}
"""Headers that a topic exchange leaves on a message, and what they say."""

_ACCEPTED = (e.MessageEnqueued, e.FireAndForgetSent)

Key = tuple[str, str]
"""(queue, message id)."""


@attrs.frozen
class Step:
    """One event in the life of a message; ``after_seconds`` is the time since the step before, 0.0 for the first."""

    record: RecordedEvent
    queue: str
    message_id: str
    after_seconds: float
    text: str


@attrs.frozen
class Trace:
    """The life of a message and of those it was redriven from and as, oldest event first.

    ``origin`` is where the first of them was published, if a topic exchange routed it into the queue.
    """

    queue: str
    message_id: str
    topic: str
    steps: tuple[Step, ...]
    origin: dict[str, str]
    finished: bool

    @property
    def messages(self) -> list[Key]:
        """The messages, in order of their acceptance."""
        return list(dict.fromkeys((step.queue, step.message_id) for step in self.steps))


@again_if_overtaken
def trace(
    log: EventLog,
    message_id: MessageReference,
    *,
    queue: str | None = None,
    until: Moment | None = None,
    progress: Progress = silent,
) -> Trace:
    """The life of the message whose id is, or begins with, ``message_id``.

    Memory is bounded by the events of the message. One pass over the log to find it, one to collect, and one more for
    each time it was redriven before.

    Raises:
        InvalidOptionError: ``until`` is no moment.
        MessageNotFoundError: it names no message, or several.
        ReadingStoppedError: the log cannot be read to its end.
    """
    require("until", moment_problem, until)
    base = base_position(log)
    found = find_message(log, id_text(message_id), until=until, queue=queue, progress=progress)
    if not found.records:
        raise MessageNotFoundError(
            f"{log.location}: the events of {found.message_id} are compacted; look into an archive of the log"
        )
    wanted: Key = found.queue, found.message_id
    first: Key | None = wanted
    records: list[tuple[RecordedEvent, Key]] = []
    roots: set[Key] = set()
    while first is not None and first not in roots:
        roots.add(first)
        records, first = _collect(log, base, first, until, progress)
    steps: list[Step] = []
    before = records[0][0].event.at
    for record, (name, found_id) in records:
        event = record.event
        steps.append(Step(record, name, found_id, event.at - before, in_words(event)))
        before = event.at
    ended = {(step.queue, step.message_id) for step in steps if ends(step.record.event)}
    accepted = [(step.queue, step.message_id) for step in steps if isinstance(step.record.event, _ACCEPTED)]
    return Trace(
        *wanted,
        str(getattr(records[0][0].event, "topic", "")),
        tuple(steps),
        _origin(records[0][0].event),
        not accepted or accepted[-1] in ended,
    )


def _collect(
    log: EventLog, base: int, first: Key, until: Moment | None, progress: Progress
) -> tuple[list[tuple[RecordedEvent, Key]], Key | None]:
    """Events of a message and what it was redriven as; and the dead letter that it was made from, if any."""
    family = {first}
    records: list[tuple[RecordedEvent, Key]] = []
    origin: Key | None = None
    for record in read(log, base=base, until=until, progress=progress):
        if not record.stream.startswith(QUEUE_STREAMS):
            continue
        event = record.event
        queue = record.stream.removeprefix(QUEUE_STREAMS)
        if isinstance(event, e.MessageEnqueued) and event.redriven_from is not None:
            source = _key(event.redriven_from)
            if source in family:
                family.add((queue, event.message_id))
            elif (queue, event.message_id) == first:
                origin = source
        records += [(record, (queue, name)) for name in message_ids(event) if (queue, name) in family]
    return records, origin


def _key(place: str) -> Key:
    queue, _, message_id = place.partition("/")
    return queue, message_id


def _origin(event: e.Event) -> dict[str, str]:
    headers = event.options.headers if isinstance(event, e.MessageEnqueued) else None
    return {word: headers[name] for name, word in ORIGIN_HEADERS.items() if name in headers} if headers else {}
