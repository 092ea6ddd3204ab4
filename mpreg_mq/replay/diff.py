"""What changed: between two moments of a log, or between two logs and where their histories part."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mpreg_mq.errors import InvalidOptionError, ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent, base_version
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_state, unless_overtaken
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
    asked for; ``left_count`` and ``right_count`` how many there are. Where events are compacted, so that the version is
    not known exactly, ``reason`` says what is.
    """

    stream: str
    version: int
    before: tuple[RecordedEvent, ...]
    left: tuple[RecordedEvent, ...]
    right: tuple[RecordedEvent, ...]
    left_count: int
    right_count: int
    reason: str = ""


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

    Events are compared as they are, with their times, by their versions. Where one of the logs is compacted, the other
    is folded up to there, and the states are compared. Memory is bounded by the queues' state.

    Raises:
        ReadingStoppedError: a log cannot be read to its end.
    """

    def compare() -> LogDifference:
        bases = base_position(left), base_position(right)
        sides = _Side(left, bases[0], shown, progress), _Side(right, bases[1], shown, silent)
        partings: list[Parting] = []
        changes: list[Change] = []
        for stream in sorted({*left.streams(), *right.streams()}):
            parting, states = _compare(sides, stream)
            if parting is None:
                continue
            partings.append(parting)
            if stream.startswith(QUEUE_STREAMS):
                name = stream.removeprefix(QUEUE_STREAMS)
                changes += diff_descriptions(name, states[0].describe(), states[1].describe())
        return LogDifference(tuple(partings), tuple(changes))

    return unless_overtaken(left, lambda: unless_overtaken(right, compare))


@attrs.frozen
class _Side:
    """One of two logs that are compared."""

    log: EventLog
    base: int
    shown: int
    progress: Progress

    def begin(self, stream: str) -> _History:
        """The history of a stream, as far as it is there."""
        state = base_state(self.log, stream) if stream.startswith(QUEUE_STREAMS) else None
        records: Iterator[RecordedEvent] = iter(())
        if stream in self.log.streams():
            records = read(self.log, base=self.base, stream=stream, progress=self.progress)
        return _History(self.log, records, base_version(self.log, stream), state, self.shown)


@attrs.define(eq=False)
class _History:
    """A stream of one log: its next events, the version reached, and the state there of a queue."""

    log: EventLog
    records: Iterator[RecordedEvent]
    version: int
    state: QueueState | None
    shown: int
    own: list[RecordedEvent] = attrs.field(factory=list, init=False)
    count: int = attrs.field(default=0, init=False)

    def take(self) -> RecordedEvent | None:
        """The next event, folded in; None at the end."""
        record = next(self.records, None)
        if record is not None:
            self.version = record.version
            if self.state is not None:
                try:
                    self.state.apply(record.event)
                except ProjectionError as error:
                    raise stopped(self.log, record.position - 1, error) from error
        return record

    def keep(self, record: RecordedEvent | None) -> None:
        """Note an event that the other log does not have."""
        if record is not None:
            self.count += 1
            if len(self.own) < self.shown:
                self.own.append(record)


def _compare(sides: tuple[_Side, _Side], stream: str) -> tuple[Parting | None, tuple[QueueState, QueueState]]:
    left, right = (side.begin(stream) for side in sides)
    before: deque[RecordedEvent] = deque(maxlen=2)
    with folding():
        begin = max(left.version, right.version)
        version, reason = _compare_beginnings(left, right, begin)
        while True:
            one, other = left.take(), right.take()
            if one is None and other is None:
                break
            if not version and one is not None and other is not None and one.event == other.event:
                before.append(one)
                continue
            version = version or max(left.version, right.version)
            left.keep(one)
            right.keep(other)
    states = left.state or QueueState(), right.state or QueueState()
    if not version:
        return None, states
    own = tuple(left.own), tuple(right.own)
    return Parting(stream, version, tuple(before), *own, left.count, right.count, reason), states


def _compare_beginnings(left: _History, right: _History, begin: int) -> tuple[int, str]:
    """Bring both to where the later of them begins; the version at which they part before that, or 0, and how."""
    for history in (left, right):
        while history.version < begin and history.take() is not None:
            pass
    for history, other in ((left, right), (right, left)):
        if history.version < begin:
            return history.version + 1, (
                f"there is no part that both have: {history.log.location} ends at version {history.version:,}, and "
                f"{other.log.location} is compacted up to version {begin:,}"
            )
    states = [history.state.describe() for history in (left, right) if begin and history.state is not None]
    if states and states[0] != states[-1]:
        return begin, "at that version or before: up to there events are compacted, and the states differ"
    return 0, ""
