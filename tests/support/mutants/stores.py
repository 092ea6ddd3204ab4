"""Faulty actors, journals and disks."""

from __future__ import annotations

import asyncio
from typing import Any

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import types as e
from tests.support.mutants.mutant import Mutant, returning

JOURNAL = "mpreg_mq.actors.journal:JournalActor._try"
DISK = "mpreg_mq.testing.disk"
ON_LOOP = "mpreg_mq.actors.loop_writing:LoopWriting"


def _written_and_refused(attempt: Any) -> Any:
    count = 0

    def mutated(self: Any, appends: Any) -> BaseException | None:
        nonlocal count
        error: BaseException | None = attempt(self, appends)
        count += bool(appends)
        return EventLogError("no space left") if error is None and appends and count % 5 == 0 else error

    return mutated


def _not_awaited(wait: Any) -> Any:
    def mutated(self: Any, started: Any, delivery: Any) -> None:
        wait(self, started, delivery)

    return mutated


def _answers_first(submit: Any) -> Any:
    def mutated(self: Any, append: Any, on_done: Any, loop: asyncio.AbstractEventLoop | None, **how: bool) -> None:
        assert loop is not None
        loop.call_soon(on_done, None)
        submit(self, append, lambda error: None, loop, **how)

    return mutated


def _not_at_once(submit_at_once: Any) -> Any:
    def mutated(self: Any, before: int, events: Any) -> None:
        self._submit(before, events)

    return mutated


def _without(kind: type[e.Event]) -> Any:
    """A disk that keeps everything but events of one kind."""

    def wrap(put: Any) -> Any:
        def mutated(self: Any, change: Any) -> None:
            if isinstance(change, list):
                change = [entry for entry in change if entry[1].type != kind.__name__]
            put(self, change)

        return mutated

    return wrap


def _forgets_the_last(load: Any) -> Any:
    def mutated(self: Any, stream: str) -> Any:
        records = list(self.log.read_stream(stream))
        return type(load(self, stream)).replay(record.event for record in records[: max(1, len(records) - 1)])

    return mutated


def _swallows_errors(attempt: Any) -> Any:
    def mutated(self: Any, appends: Any) -> None:
        attempt(self, appends)

    return mutated


def _lands_too_much(land: Any) -> Any:
    def mutated(self: Any, *, wait: bool) -> Any:
        landed = land(self, wait=wait)
        early = [submission for batch in self._flights for submission in batch]
        for batch in self._flights:
            batch.clear()
        return landed + [(submission, None) for submission in early]

    return mutated


def _believes_what_failed(bring_down: Any) -> Any:
    def mutated(self: Any) -> Any:
        outcomes, again = bring_down(self)
        return [*outcomes, *((submission, None) for submission in again)], []

    return mutated


STORE_MUTANTS: tuple[Mutant, ...] = (
    Mutant("a store error leaves the message pending", "unexpected", JOURNAL, _written_and_refused, "disk"),
    Mutant(
        "a coroutine that nobody waited for is acknowledged",
        "L4",
        "mpreg_mq.actors.subscriber_actor:SubscriberActor.go_on",
        _not_awaited,
    ),
    Mutant(
        "leases outlive their process",
        "C3",
        "mpreg_mq.actors.queue_actor:QueueActor._end_push_leases",
        returning(None),
    ),
    Mutant(
        "the journal answers before it writes", "I5", "mpreg_mq.actors.journal:Journal.submit", _answers_first, "disk"
    ),
    Mutant(
        "a lone sender is answered before its commit",
        "I5",
        "mpreg_mq.actors.recording:RecordingActor._submit_at_once",
        _not_at_once,
        "disk",
    ),
    Mutant("the journal swallows errors", "I5", JOURNAL, _swallows_errors, "disk"),
    Mutant(
        "an exhausted message is deleted on disk", "R1", f"{DISK}:SimulatedDisk.put", _without(e.MessageDeadLettered)
    ),
    Mutant("acknowledgments are not written", "I4", f"{DISK}:SimulatedDisk.put", _without(e.MessageAcknowledged)),
    Mutant("one sync answers for all that are under way", "I5", f"{ON_LOOP}._land", _lands_too_much, "loop"),
    Mutant(
        "what a sync that failed has left out counts as written",
        "I5",
        f"{ON_LOOP}.bring_down",
        _believes_what_failed,
        "loop",
    ),
    Mutant("recovery forgets the last event", "I6", "mpreg_mq.actors.store:Store.load", _forgets_the_last),
)
