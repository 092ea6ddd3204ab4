"""What clients were told, held against what the disk has when a process has ended: only what may be lost is lost.

What may be lost is said by the durability of the queue and by what its log asks of the disk (docs/durability.md). Of
what may be, only the end is lost: whatever was answered before something that is still there is there as well. And
what was lost stays lost: its id is not given to another message (I7).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import Enum

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import Violation
from mpreg_mq.model import Durability
from mpreg_mq.projections import QueueState
from mpreg_mq.testing.clients import Operation

NEVER = 1 << 62
ROUNDING = 1e-6
"""What a difference of two times since 1970 may be off by, in seconds."""


class End(Enum):
    """How a process ended."""

    SHUTDOWN = "a shutdown"
    CRASH = "a crash"
    POWER_CUT = "a power cut"


Fact = tuple[str, str | None]
"""An accepted message, or a message and who acknowledged it."""


@attrs.frozen(eq=False)
class Answer:
    """An operation of a client that was answered with success; ``fact`` is what the log has to hold for it."""

    operation: Operation
    stream: str
    durability: Durability
    fact: Fact
    process: int

    @property
    def ended(self) -> int:
        """When it was answered, as an ordinal of the history."""
        assert self.operation.ended is not None
        return self.operation.ended

    def __str__(self) -> str:
        return f"{self.operation.function} {self.operation.value} ({self.durability.value})"


def facts_of(records: Iterable[RecordedEvent]) -> dict[str, set[Fact]]:
    """By stream, what clients may have been told of what is in a log."""
    found: dict[str, set[Fact]] = {}
    for record in records:
        event = record.event
        if isinstance(event, e.MessageEnqueued):
            found.setdefault(record.stream, set()).add((event.message_id, None))
        elif isinstance(event, e.MessageAcknowledged):
            found.setdefault(record.stream, set()).add((event.message_id, event.subscriber_id))
    return found


def work_of(state: QueueState) -> dict[str, object]:
    """What a queue has done for others; its timers may go on until its actor has stopped, and nobody misses that."""
    counts = state.statistics.counts
    return {
        "sent": counts.messages_sent,
        "delivered": counts.messages_received,
        "acknowledged": counts.messages_acknowledged,
        "subscribers": [subscriber.id for subscriber in state.subscribers if subscriber.present],
        "leases": state.messages.leased_count,
    }


def forgotten_deliveries(records: Iterable[RecordedEvent], history: Iterable[Operation]) -> Iterator[Operation]:
    """Deliveries, so far, that the log does not hold: after a crash or a failure they are as good as not made.

    One that was lost is made again under the same number.
    """
    there = {
        (record.event.message_id, record.event.subscriber_id, record.event.attempt)
        for record in records
        if isinstance(record.event, e.MessageDelivered)
    }
    latest: dict[tuple[str, str, int], Operation] = {}
    for operation in history:
        if operation.function == "deliver":
            told = operation.details
            key = told["message_id"], operation.process, told["attempt"]
            before = operation if key not in there else latest.get(key)
            latest[key] = operation
            if before is not None:
                yield before


@attrs.define
class Answers:
    """All answers that have not been lost, over all processes; ``forgotten`` are operations that were.

    ``buffered_seconds`` is how much a BUFFERED queue risks. ``safe_from`` is the ordinal up to which answers have been
    put where a power cut does not reach them.
    """

    buffered_seconds: float
    safe_from: int = NEVER
    forgotten: set[Operation] = attrs.field(factory=set, init=False)
    lost: int = attrs.field(default=0, init=False)
    """How many answers the log did not hold any more when a process had ended, those of queues in memory left out."""
    violations: list[Violation] = attrs.field(factory=list, init=False)
    _answers: list[Answer] = attrs.field(factory=list, init=False)
    _named: dict[tuple[str, Fact], Answer] = attrs.field(factory=dict, init=False)
    _rebuilt: dict[str, list[int]] = attrs.field(factory=dict, init=False)

    def add(self, answer: Answer) -> None:
        """A client was told something."""
        self._answers.append(answer)
        before = self._named.setdefault((answer.stream, answer.fact), answer)
        if before.operation.value != answer.operation.value:
            sentence = f"{answer} was answered with an id that {before} has been given before"
            self.violations.append(Violation("I7", 0, answer.stream, answer.fact[0], sentence))

    def rebuilt(self, stream: str, ordinal: int) -> None:
        """A queue has given up what was on its way to the log, because an append failed."""
        self._rebuilt.setdefault(stream, []).append(ordinal)

    def settle(self, records: list[RecordedEvent], process: int, end: End) -> None:
        """A process has ended, and this is what the log holds: judge what is missing, and forget what may be."""
        there = facts_of(records)
        answers = [answer for answer in self._answers if answer.durability is not Durability.MEMORY]
        # What was answered more than once was lost in between: the log has it for the last of them.
        last = {
            (answer.stream, answer.fact): answer for answer in answers if answer.fact in there.get(answer.stream, ())
        }
        kept = list(last.values())
        lost = [answer for answer in answers if last.get((answer.stream, answer.fact)) is not answer]
        for answer in lost:
            self.forgotten.add(answer.operation)
            reason = self._forbidden(answer, process, end)
            if reason is not None:
                self._report("I5", records, answer, reason)
        self._answers = kept
        self.lost += len(lost)
        for stream in sorted({answer.stream for answer in lost}):
            of_stream = [answer for answer in lost if answer.stream == stream]
            for answer, later in self._holes(of_stream, [answer for answer in kept if answer.stream == stream]):
                self._report("I7", records, answer, f"although what was asked for after it is there: {later}")
            at_risk = [answer for answer in of_stream if not self._taken_by_the_disk(answer, end)]
            for answer, later in self._too_long(at_risk):
                seconds = later.operation.began_at - (answer.operation.ended_at or 0.0)
                self._report("I5", records, answer, f"and so is {later}, which was asked for {seconds:g} s later")

    def closed(self, records: list[RecordedEvent], states: dict[str, QueueState], begun: int) -> None:
        """C3: queues that were closed from an ordinal on have in the log what they did until then."""
        for stream, state in states.items():
            if self._next_rebuild(stream, begun) != NEVER:
                continue
            log = QueueState.replay(record.event for record in records if record.stream == stream)
            if work_of(log) != work_of(state):
                sentence = f"a queue was closed with {work_of(state)}, and its log says {work_of(log)}"
                self.violations.append(Violation("C3", len(records), stream, None, sentence))

    def settle_memory(self, records: list[RecordedEvent], memory: list[RecordedEvent]) -> None:
        """Before the process ends: what queues in memory have answered they hold, and the log holds nothing of it.

        Acknowledgments count for ever all the same, because the messages do not come back.
        """
        there = facts_of(memory)
        answers = [answer for answer in self._answers if answer.durability is Durability.MEMORY]
        for answer in answers:
            if answer.fact not in there.get(answer.stream, ()):
                self._report("I5", memory, answer, "although its process has not ended")
            if answer.fact[1] is None:
                self.forgotten.add(answer.operation)
        for stream in sorted({answer.stream for answer in answers}):
            found = next((record for record in records if record.stream == stream), None)
            if found is not None:
                sentence = "a queue whose durability is memory has an event in the log"
                self.violations.append(Violation("I5", found.position, stream, None, sentence, (found,)))

    def _taken_by_the_disk(self, answer: Answer, end: End) -> bool:
        return end is End.POWER_CUT and answer.ended >= self.safe_from

    def _forbidden(self, answer: Answer, process: int, end: End) -> str | None:
        """Why an answer should not have been lost; None where it may be, as far as it alone can tell."""
        if self._taken_by_the_disk(answer, end):
            return None
        if answer.durability is Durability.COMMITTED:
            return f"after {end.value}"
        if answer.process != process:
            return f"after {end.value} of a later process"
        if end is End.SHUTDOWN and self._next_rebuild(answer.stream, answer.operation.began) == NEVER:
            return "although the process had its time to end"
        return None

    def _next_rebuild(self, stream: str, ordinal: int) -> int:
        rebuilt = self._rebuilt.get(stream, [])
        index = bisect_left(rebuilt, ordinal)
        return rebuilt[index] if index < len(rebuilt) else NEVER

    def _holes(self, lost: list[Answer], kept: list[Answer]) -> Iterator[tuple[Answer, Answer]]:
        """Lost answers with something that was asked for later, of the same queue, and is there."""
        for answer in lost:
            # What was on its way at a rebuild is lost as a whole, and what comes after it is not.
            end = self._next_rebuild(answer.stream, answer.operation.began)
            later = [one for one in kept if answer.ended < one.operation.began and one.ended < end]
            if later:
                yield answer, later[0]

    def _too_long(self, lost: list[Answer]) -> Iterator[tuple[Answer, Answer]]:
        """Answers lost together, of which the one was asked for when the other had been at risk for too long."""
        for answer in lost:
            end = self._next_rebuild(answer.stream, answer.operation.began)
            for later in lost:
                seconds = later.operation.began_at - (answer.operation.ended_at or 0.0)
                together = answer.ended < later.operation.began and later.ended < end
                if together and seconds > self.buffered_seconds + ROUNDING:
                    yield answer, later
                    break

    def _report(self, rule: str, records: list[RecordedEvent], answer: Answer, why: str) -> None:
        sentence = f"{answer} was answered to {answer.operation.process} and is lost, {why}"
        self.violations.append(Violation(rule, len(records), answer.stream, answer.fact[0], sentence, ()))
