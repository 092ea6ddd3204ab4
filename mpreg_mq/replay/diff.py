"""What changed: between two moments of a log, or between two logs and where their histories part."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import attrs

from mpreg_mq.errors import InvalidOptionError, ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_state
from mpreg_mq.replay.moments import Moment, is_later
from mpreg_mq.replay.records import Progress, folding, read, silent, stopped
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.travel import replay


@attrs.frozen
class Change:
    """One difference between two states of a queue; ``before`` or ``after`` is None where there was nothing."""

    queue: str
    part: str
    name: str
    before: Any
    after: Any


@attrs.frozen
class Between:
    """What happened between two moments: events by type, and what they changed."""

    events: dict[str, int]
    changes: tuple[Change, ...]


@attrs.frozen
class Parting:
    """Where a stream of two logs parts: the first version at which they do not hold the same event.

    ``before`` are the last events that they share; ``left`` and ``right`` the first that they do not, as many as were
    asked for; ``left_count`` and ``right_count`` how many there are.
    """

    stream: str
    version: int
    before: tuple[RecordedEvent, ...]
    left: tuple[RecordedEvent, ...]
    right: tuple[RecordedEvent, ...]
    left_count: int
    right_count: int


@attrs.frozen
class LogDifference:
    """How two logs differ: not at all where there are no partings."""

    partings: tuple[Parting, ...]
    changes: tuple[Change, ...]


@again_if_overtaken
def diff_moments(
    log: EventLog, start: Moment, end: Moment | None = None, *, queue: str | None = None, progress: Progress = silent
) -> Between:
    """What changed in the queues from one moment to another, or to the log's end; two passes over the log.

    Raises:
        InvalidOptionError: the first moment is after the other.
        EventLogError: there is no such queue.
        ReadingStoppedError: the log cannot be read so far.
    """
    if end is not None and is_later(start, end, log):
        raise InvalidOptionError(f"end: got {end}, which is before {start}; give the earlier moment first")
    base = base_position(log)
    first = replay(log, until=start, queue=queue, progress=progress)
    before = {name: state.describe() for name, state in first.states.items()}
    counts: Counter[str] = Counter()
    for record in read(log, base=base, until=end, queue=queue, progress=progress):
        if not start.includes(record):
            counts[type(record.event).__name__] += 1
    last = replay(log, until=end, queue=queue, progress=progress)
    after = {name: state.describe() for name, state in last.states.items()}
    changes = [
        change
        for name in dict.fromkeys((*before, *after))
        for change in diff_descriptions(name, before.get(name, {}), after.get(name, {}))
    ]
    return Between(dict(counts.most_common()), tuple(changes))


def diff_descriptions(queue: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """The differences between two of :meth:`QueueState.describe`; O(size of both)."""
    for part in dict.fromkeys((*before, *after)):
        if part in ("version", "pending", "messages"):
            continue
        old, new = _named(part, before.get(part)), _named(part, after.get(part))
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield Change(queue, part, name, old.get(name), new.get(name))
    yield from _diff_messages(queue, before.get("messages", {}), after.get("messages", {}))
    if before.get("pending") != after.get("pending"):
        old_order, new_order = before.get("pending") or [], after.get("pending") or []
        kept = set(old_order) & set(new_order)
        if [name for name in old_order if name in kept] != [name for name in new_order if name in kept]:
            yield Change(queue, "pending", "order", old_order, new_order)


def _diff_messages(queue: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Unfinished messages that came, went, or changed, and in what."""
    for message_id in dict.fromkeys((*before, *after)):
        old, new = before.get(message_id), after.get(message_id)
        if old is None or new is None:
            gone, there = ("unfinished", None) if new is None else (None, "unfinished")
            yield Change(queue, "messages", message_id, gone, there)
            continue
        slots_before, slots_after = ({slot["subscriber"]: slot for slot in slots} for slots in (old, new))
        for subscriber in dict.fromkeys((*slots_before, *slots_after)):
            copy = f" for {subscriber}" if subscriber is not None else ""
            one, other = slots_before.get(subscriber, {}), slots_after.get(subscriber, {})
            for field in dict.fromkeys((*one, *other)):
                if one.get(field) != other.get(field):
                    yield Change(queue, "messages", f"{message_id}{copy} {field}", one.get(field), other.get(field))


def _named(part: str, value: Any) -> dict[str, Any]:
    """A part of a description as values by name."""
    if part == "dead_letters":
        return {entry.ended.message_id: entry.ended.reason for entry in value or ()}
    if part == "configuration" and value is not None:
        return attrs.asdict(value, value_serializer=lambda _, __, item: getattr(item, "value", item))
    if isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    return {} if value is None else {"": value}


def diff_logs(left: EventLog, right: EventLog, *, shown: int = 5, progress: Progress = silent) -> LogDifference:
    """Where the histories of two logs part, stream by stream, and how their queues differ at the end.

    Events are compared as they are, with their times. Memory is bounded by the queues' state.

    Raises:
        ReadingStoppedError: a log cannot be read to its end.
    """
    partings: list[Parting] = []
    changes: list[Change] = []
    for stream in sorted({*left.streams(), *right.streams()}):
        parting, states = _compare(left, right, stream, shown, progress)
        if parting is None:
            continue
        partings.append(parting)
        if stream.startswith(QUEUE_STREAMS):
            name = stream.removeprefix(QUEUE_STREAMS)
            changes += diff_descriptions(name, states[0].describe(), states[1].describe())
    return LogDifference(tuple(partings), tuple(changes))


def _compare(
    left: EventLog, right: EventLog, stream: str, shown: int, progress: Progress
) -> tuple[Parting | None, tuple[QueueState, QueueState]]:
    folds = stream.startswith(QUEUE_STREAMS)
    states = (base_state(left, stream), base_state(right, stream)) if folds else (QueueState(), QueueState())
    before: deque[RecordedEvent] = deque(maxlen=2)
    first: tuple[list[RecordedEvent], list[RecordedEvent]] = ([], [])
    counts = [0, 0]
    version = 0
    with folding():
        for pair in zip_longest(_stream(left, stream, progress), _stream(right, stream, silent)):
            if not version:
                one, other = pair
                if one is not None and other is not None and one.event == other.event:
                    before.append(one)
                else:
                    version = next(record.version for record in pair if record is not None)
            for side, record in enumerate(pair):
                if record is None:
                    continue
                if version:
                    counts[side] += 1
                    if len(first[side]) < shown:
                        first[side].append(record)
                if folds:
                    _apply(states[side], record, (left, right)[side])
    if not version:
        return None, states
    return Parting(stream, version, tuple(before), tuple(first[0]), tuple(first[1]), *counts), states


def _stream(log: EventLog, stream: str, progress: Progress) -> Iterator[RecordedEvent]:
    return read(log, stream=stream, progress=progress) if stream in log.streams() else iter(())


def _apply(state: QueueState, record: RecordedEvent, log: EventLog) -> None:
    try:
        state.apply(record.event)
    except ProjectionError as error:
        raise stopped(log, record.position - 1, error) from error
