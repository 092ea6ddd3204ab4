"""What a simulation checks beyond the log's own rules: I4 live, I5, I6 and L4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import Violation
from mpreg_mq.payload import decode_payload
from mpreg_mq.projections import QueueState
from mpreg_mq.testing.clients import Operation, Outcome
from mpreg_mq.testing.scenario import QUEUE_NAME

if TYPE_CHECKING:
    from mpreg_mq.testing.world import World

STREAM = f"queue:{QUEUE_NAME}"


def _violation(rule: str, records: list[RecordedEvent], sentence: str, *evidence: RecordedEvent) -> Violation:
    named = getattr(evidence[-1].event, "message_id", None) if evidence else None
    position = evidence[-1].position if evidence else len(records)
    return Violation(rule, position, STREAM, named, sentence, evidence)


def check_live_state(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I4: the state of the live queue is the fold of its log."""
    process = world.final
    if process is None or process.queue is None:
        return []
    live = process.queue._actor.state.describe()
    try:
        folded = QueueState.replay(record.event for record in records if record.stream == STREAM).describe()
    except MessageQueueError as error:
        return [_violation("I4", records, f"the log cannot be folded: {error}")]
    different = [part for part in folded if folded[part] != live.get(part)]
    return [
        _violation("I4", records, f"{part}: the live queue says {live.get(part)!r}, its log says {folded[part]!r}")
        for part in different
    ]


def check_drained(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I6: after the faults have stopped everything that was pending has drained."""
    process = world.final
    if process is None or process.queue is None:
        return [_violation("I6", records, "the last process did not get its queue open")]
    by_id = {record.event.message_id: record for record in records if isinstance(record.event, e.MessageEnqueued)}
    return [
        _violation("I6", records, f"{message.id} is still there, and its subscribers are healthy", by_id[message.id])
        for message in process.queue._actor.state.messages
        if message.id in by_id
    ]


def check_nothing_lost_or_made_up(world: World, records: list[RecordedEvent]) -> list[Violation]:
    """I5: what a client was told is accepted is in the log, and what is in the log a client has tried to send."""
    logged: dict[str, RecordedEvent] = {}
    for record in records:
        if isinstance(record.event, e.MessageEnqueued):
            logged[record.event.message_id] = record
    found = [
        _violation("I5", records, f"{key} was acknowledged to its sender as {message_id} and is not in the log")
        for message_id, key in world.accepted.items()
        # A fire-and-forget send does not wait for its commit (G1).
        if message_id not in logged and not message_id.startswith("f")
    ]
    for record in logged.values():
        event = record.event
        assert isinstance(event, e.MessageEnqueued)
        key = decode_payload(event.payload)["key"]
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


def excused(records: list[RecordedEvent]) -> set[str]:
    """What clients call the messages that need not have arrived: they expired, were dropped, purged, or died."""
    names: dict[str, str] = {}
    found: set[str] = set()
    for record in records:
        event = record.event
        if isinstance(event, e.MessageEnqueued):
            key = decode_payload(event.payload)["key"]
            names[event.message_id] = key if event.redriven_from is None else f"{key}@{event.redriven_from}"
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
