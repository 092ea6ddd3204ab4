"""From what somebody types to a message of the log: an id, its beginning, a deduplication key, or a position."""

from __future__ import annotations

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.replay.base import base_states
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, read, silent
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.wording import message_ids

MAX_CANDIDATES = 1000
"""Messages that a search keeps at once; with more the beginning of an id is no use anyway."""


class MessageNotFoundError(EventLogError):
    """No message of the log is meant, or more than one is."""


@attrs.frozen
class Found:
    """A message, and its events up to the moment that was asked for."""

    queue: str
    message_id: str
    records: tuple[RecordedEvent, ...]


@attrs.frozen
class FoundKey:
    """A deduplication key that sends of the queue had; ``refused`` are the sends that it kept out."""

    queue: str
    key: str
    refused: tuple[RecordedEvent, ...]


def find_message(
    log: EventLog,
    text: str,
    *,
    until: Moment | None = None,
    queue: str | None = None,
    progress: Progress = silent,
) -> Found:
    """The message that a text names; one pass over the log.

    The whole id goes before its sequence number (``12`` for ``12-a1b2``), and that before any other beginning.

    Raises:
        MessageNotFoundError: it names none, or several.
        ReadingStoppedError: the log cannot be read to its end.
    """
    found = find(log, text, until=until, queue=queue, progress=progress)
    if isinstance(found, Found):
        return found
    raise MessageNotFoundError(f"{log.location}: {text!r} is no message; give the id of one, or its beginning")


def find(
    log: EventLog,
    text: str,
    *,
    until: Moment | None = None,
    queue: str | None = None,
    progress: Progress = silent,
) -> Found | FoundKey | RecordedEvent:
    """What a text names: a message, a deduplication key, or (``@1234``) the event at a position.

    Raises:
        MessageNotFoundError: it names nothing, or several messages.
        ReadingStoppedError: the log cannot be read to its end.
    """
    if text.startswith("@") and text[1:].isdigit():
        return _event_at(log, int(text[1:]))
    base = base_position(log)
    candidates = _before_the_log(log, text, queue)
    refused: dict[str, list[RecordedEvent]] = {}
    holders: dict[str, str] = {}
    for record in read(log, base=base, until=until, queue=queue, progress=progress):
        event = record.event
        for message_id in message_ids(event):
            if message_id.startswith(text):
                place = record.stream, message_id
                kept = candidates.get(place)
                if kept is not None:
                    kept.append(record)
                elif len(candidates) < MAX_CANDIDATES or _rank(message_id, text) > 1:
                    candidates[place] = [record]
        key = getattr(event, "deduplication_key", None)
        if key is not None and text in (key, _given_key(event)):
            holders.setdefault(record.stream, key)
            if isinstance(event, e.DuplicateRejected):
                refused.setdefault(record.stream, []).append(record)
    if candidates:
        return _best(log, text, candidates)
    if holders:
        stream, key = next(iter(holders.items()))
        return FoundKey(stream.removeprefix(QUEUE_STREAMS), key, tuple(refused.get(stream, ())))
    where = "" if until is None else f" up to {until}"
    raise MessageNotFoundError(
        f"{log.location}: no message{where} has an id that begins with {text!r}, and no send had it as its "
        "deduplication key; mpreg-mq log show lists what there is"
    )


def _before_the_log(log: EventLog, text: str, queue: str | None) -> dict[tuple[str, str], list[RecordedEvent]]:
    """Messages and dead letters that were there before the first event that the log still has, without events yet."""
    found: dict[tuple[str, str], list[RecordedEvent]] = {}
    for name, state in base_states(log, queue).items():
        for message_id in (*(message.id for message in state.messages), *state.dead_letters.ids()):
            if message_id.startswith(text):
                found[QUEUE_STREAMS + name, message_id] = []
    return found


def _given_key(event: e.Event) -> str | None:
    return event.options.deduplication_id if isinstance(event, e.MessageEnqueued) else None


def _rank(message_id: str, text: str) -> int:
    if message_id == text:
        return 3
    return 2 if message_id.split("-", 1)[0] == text else 1


def _best(log: EventLog, text: str, candidates: dict[tuple[str, str], list[RecordedEvent]]) -> Found:
    ranks = {place: _rank(place[1], text) for place in candidates}
    top = max(ranks.values())
    places = [place for place, rank in ranks.items() if rank == top]
    if len(places) > 1:
        shown = ", ".join(f"{message_id} ({stream.removeprefix(QUEUE_STREAMS)})" for stream, message_id in places[:8])
        more = f" and {len(places) - 8} more" if len(places) > 8 else ""
        raise MessageNotFoundError(
            f"{log.location}: {text!r} is the beginning of {shown}{more}; give more of it, or name the queue"
        )
    stream, message_id = places[0]
    return Found(stream.removeprefix(QUEUE_STREAMS), message_id, tuple(candidates[places[0]]))


def _event_at(log: EventLog, position: int) -> RecordedEvent:
    for record in read(log, after=position - 1, until=Moment(position=position)):
        return record
    raise MessageNotFoundError(
        f"{log.location}: there is no event at position {position}; the last one is at {log.last_position()}"
    )
