"""What a simulation checks beyond the log's own rules: I4 live and after a cut, I5, I6 and L4.

I5 for what was answered, and I7, are in :mod:`mpreg_mq.testing.answers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import InvariantChecker, Violation
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.loading import load_state, state_at_base
from mpreg_mq.testing.clients import Operation, Outcome
from mpreg_mq.testing.disk import SimulatedDisk, SimulatedLog, Writing
from mpreg_mq.testing.loop import SimulatedLoop
from mpreg_mq.testing.messages import name_of
from mpreg_mq.testing.scenario import QUEUE_NAME
from mpreg_mq.topics import matches

if TYPE_CHECKING:
    from mpreg_mq.testing.world import World

STREAM = f"queue:{QUEUE_NAME}"


def _violation(rule: str, records: list[RecordedEvent], sentence: str, *evidence: RecordedEvent) -> Violation:
    named = getattr(evidence[-1].event, "message_id", None) if evidence else None
    position = evidence[-1].position if evidence else len(records)
    return Violation(rule, position, STREAM, named, sentence, evidence)


def described(state: QueueState) -> dict[str, Any]:
    """All that a state holds, what its messages say included."""
    return {**state.describe(), "accepted": {message.id: message.event for message in state.messages}}


def by_stream(records: Iterable[RecordedEvent]) -> dict[str, list[e.Event]]:
    """The events of each queue."""
    found: dict[str, list[e.Event]] = {}
    for record in records:
        if record.stream.startswith("queue:"):
            found.setdefault(record.stream, []).append(record.event)
    return found


def check_live_state(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I4: the state of each live queue is the fold of its log."""
    process = world.final
    if process is None or process.queue is None:
        return []
    events = by_stream(records)
    found = []
    for queue in process.manager.queues.values():
        actor = queue._actor
        live = described(actor.state)
        try:
            folded = described(QueueState.replay(events.get(actor.stream, [])))
        except MessageQueueError as error:
            found.append(_violation("I4", records, f"the log of {actor.stream} cannot be folded: {error}"))
            continue
        found += [
            _violation(
                "I4", records, f"{actor.stream}, {part}: live it is {live.get(part)!r}, by its log {folded[part]!r}"
            )
            for part in folded
            if folded[part] != live.get(part)
        ]
    return found


def check_what_is_left(disk: SimulatedDisk, records: list[RecordedEvent]) -> list[Violation]:
    """I4: whoever opens the log now comes to the same state by every way there is, however much of it is cut off.

    ``records`` are all events. Each that is cut off is in an archive, where there are any, and what remains breaks no
    rule by itself.
    """
    log = SimulatedLog(disk, SimulatedLoop(), False, Writing.THREAD)
    found: list[Violation] = []

    def compare(way: str, stream: str, state: QueueState, events: list[e.Event]) -> None:
        right, this = described(QueueState.replay(events)), described(state)
        found.extend(
            _violation("I4", records, f"{stream}, {part}: {way} it is {this[part]!r}, from all events {right[part]!r}")
            for part in right
            if this[part] != right[part]
        )

    for stream, events in by_stream(records).items():
        try:
            compare("loaded", stream, load_state(log, stream), events)
            state = state_at_base(log, stream)
            state.apply_all(record.event for record in log.read_stream(stream))
            compare("from where the log begins", stream, state, events)
            for snapshot in log.snapshots(stream):
                restored = QueueState.restore(snapshot.body)
                assert restored is not None, "the same release wrote it"
                compare(f"in the snapshot at {snapshot.version}", stream, restored, events[: snapshot.version])
        except MessageQueueError as error:
            found.append(_violation("I4", records, f"{stream} cannot be read any more: {error}"))
    cut = log.base_position()
    if cut:
        found += InvariantChecker().observe_all(log.read_all()).finish(cut=True)
    if disk.archives:
        # With power cuts there may be one of events that were lost, and others have come in their place.
        archived: dict[int, list[RecordedEvent]] = {}
        for archive in disk.archives.values():
            for record in archive:
                archived.setdefault(record.position, []).append(record)
        found += [
            _violation("I4", records, "it is cut off the log and in no archive", record)
            for record in records[:cut]
            if record not in archived.get(record.position, ())
        ]
    return found


def waiting_for_nobody(world: World) -> set[str]:
    """Ids of the messages that wait, because nobody of the quiet end subscribes to their topics (G5), or because such a
    message of their group stands before them (O1)."""
    process = world.final
    if process is None or process.queue is None:
        return set()
    messages = list(process.queue._actor.state.messages)
    unasked = {
        message.id
        for message in messages
        if not any(matches(pattern, message.topic) for pattern in world.last_patterns)
    }
    groups = {message.event.options.group_id for message in messages if message.id in unasked}
    behind = {
        message.id
        for message in messages
        if message.event.options.group_id is not None and message.event.options.group_id in groups
    }
    return unasked | behind


def check_drained(world: World, records: list[RecordedEvent], waiting: set[str]) -> list[Violation]:
    """I6: after the faults have stopped everything that was pending has drained, but for those that wait for nobody."""
    process = world.final
    if process is None or process.queue is None:
        return [_violation("I6", records, "the last process did not get its queue open")]
    by_id = {record.event.message_id: record for record in records if isinstance(record.event, e.MessageEnqueued)}
    return [
        _violation("I6", records, f"{message.id} is still there, and its subscribers are healthy", by_id[message.id])
        for message in process.queue._actor.state.messages
        if message.id in by_id and message.id not in waiting
    ]


def check_nothing_made_up(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I5: what is in the log a client has tried to send."""
    found = []
    for record in records:
        event = record.event
        if isinstance(event, e.MessageEnqueued):
            key = name_of(event)
            if key not in world.attempted:
                found.append(_violation("I5", records, f"{key} is in the log and nobody tried to send it", record))
    return found


def check_acknowledged_after_work(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """L4: an automatic acknowledgment comes when the handler has come to its end, and never when it raised."""
    work: dict[tuple[str, str, int], list[Operation]] = {}
    for operation in world.history.of("deliver"):
        key = (operation.details["message_id"], operation.process, operation.details["attempt"])
        work.setdefault(key, []).append(operation)
    delivered: dict[tuple[str, str], RecordedEvent] = {}
    found = []
    for record in records:
        event = record.event
        if isinstance(event, e.MessageDelivered):
            delivered[event.message_id, event.subscriber_id] = record
        elif isinstance(event, e.MessageAcknowledged):
            delivery = delivered.get((event.message_id, event.subscriber_id))
            if delivery is None or not isinstance(delivery.event, e.MessageDelivered) or delivery.event.pull:
                continue
            # An attempt whose delivery could not be recorded is repeated under the same number.
            done = work.get((event.message_id, event.subscriber_id, delivery.event.attempt), [])
            if any(operation.outcome is Outcome.OK and (operation.ended_at or 0.0) <= event.at for operation in done):
                continue
            sentence = "is acknowledged before its handler came to its end"
            if not done:
                sentence = "is acknowledged and its handler was never called"
            elif all(operation.outcome is Outcome.FAIL for operation in done):
                sentence = "is acknowledged although its handler raised"
            found.append(_violation("L4", records, f"{event.message_id} {sentence}", delivery, record))
    return found


def excused(records: list[RecordedEvent], waiting: set[str]) -> set[str]:
    """What clients call the messages that need not have arrived: they wait for nobody, expired, were dropped or purged,
    or died."""
    names: dict[str, str] = {}
    found: set[str] = set()
    for record in records:
        event = record.event
        if isinstance(event, e.MessageEnqueued):
            key = name_of(event)
            names[event.message_id] = key if event.redriven_from is None else f"{key}@{event.redriven_from}"
            if event.message_id in waiting:
                found.add(names[event.message_id])
        elif isinstance(event, e.MessageExpired | e.MessageDropped | e.MessageDeadLettered | e.MessageFailed):
            found.add(names.get(event.message_id, ""))
        elif isinstance(event, e.MessagesPurged):
            found.update(names.get(message_id, "") for message_id in event.message_ids)
    return found


def check_snapshots(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I4: a snapshot taken anywhere, and the events after it, come to the same state as all events."""
    events = [record.event for record in records if record.stream == STREAM]
    try:
        folded = QueueState.replay(events).describe()
    except MessageQueueError as error:
        return [_violation("I4", records, f"the log cannot be folded: {error}")]
    found = []
    for _ in range(2 if events else 0):
        cut = world.random.randint(1, len(events))
        restored = QueueState.restore(QueueState.replay(events[:cut]).dump())
        if restored is None:
            found.append(_violation("I4", records, f"the snapshot at version {cut} cannot be read by who wrote it"))
            continue
        try:
            for event in events[cut:]:
                restored.apply(event)
        except MessageQueueError as error:
            found.append(
                _violation("I4", records, f"from a snapshot at version {cut} the rest cannot be folded: {error}")
            )
            continue
        described = restored.describe()
        found += [
            _violation(
                "I4",
                records,
                f"{part}: from a snapshot at version {cut} it is {described.get(part)!r}, "
                f"from all events {folded[part]!r}",
            )
            for part in folded
            if folded[part] != described.get(part)
        ]
    return found
