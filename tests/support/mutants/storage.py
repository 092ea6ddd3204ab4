"""Faults in what may be lost, and in what stands for events that are gone."""

from __future__ import annotations

from typing import Any

from mpreg_mq.actors import recording
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.model import Durability
from mpreg_mq.testing.retention import SimulatedArchive
from tests.support.mutants.mutant import Mutant, returning

RECORDING = "mpreg_mq.actors.recording:RecordingActor"
FOLD = "mpreg_mq.actors.retention:Fold.snapshot"
DISK = "mpreg_mq.testing.disk:SimulatedDisk"


def _ids_again(rebuild: Any) -> Any:
    def mutated(self: Any, error: BaseException) -> None:
        rebuild(self, error)
        self._shared_context.run = self._run

    return mutated


def _risks_all(record: Any) -> Any:
    def mutated(self: Any, *arguments: Any, **keywords: Any) -> Any:
        before, recording._NEVER_RISKED = recording._NEVER_RISKED, ()  # type: ignore[assignment]
        try:
            return record(self, *arguments, **keywords)
        finally:
            recording._NEVER_RISKED = before

    return mutated


def _stops_at_once(on_stop: Any) -> Any:
    def mutated(self: Any) -> None:
        self._intake.stopped = True
        self._intake.finished.set()

    return mutated


def _written_all_the_same(at: Any) -> Any:
    def mutated(self: Any, durability: Durability, *arguments: Any) -> Any:
        return at(self, Durability.BUFFERED if durability is Durability.MEMORY else durability, *arguments)

    return mutated


def _memory_leaks(append_next: Any) -> Any:
    count = 0

    def mutated(self: Any, stream: str, version: int, events: Any) -> None:
        nonlocal count
        if isinstance(events[-1], e.MessageEnqueued):
            count += 1
            if count % 5 == 0:
                return
        append_next(self, stream, version, events)

    return mutated


def _takes_what_is_safe(cut_power: Any) -> Any:
    def mutated(self: Any) -> None:
        self.safe //= 2
        cut_power(self)

    return mutated


def _takes_the_middle(cut_power: Any) -> Any:
    def mutated(self: Any) -> None:
        last = self.changes[-1:]
        cut_power(self)
        if last != self.changes[-1:]:
            self.changes += last

    return mutated


def _base_without(part: str, attribute: str) -> Any:
    """A cut whose base has nothing of one projection."""

    def wrap(snapshot: Any) -> Any:
        def mutated(self: Any) -> Any:
            projection = getattr(self._state, part)
            empty = getattr(type(projection)(), attribute)
            setattr(projection, attribute, empty)
            return snapshot(self)

        return mutated

    return wrap


def _base_without_attempts(snapshot: Any) -> Any:
    def mutated(self: Any) -> Any:
        for message in self._state.messages:
            for slot in message.slots():
                slot.attempts = 0
        return snapshot(self)

    return mutated


def _base_without_keys(snapshot: Any) -> Any:
    def mutated(self: Any) -> Any:
        window = self._state.deduplication
        window._held.clear()
        window._expiries.clear()
        return snapshot(self)

    return mutated


def _base_without_messages(snapshot: Any) -> Any:
    def mutated(self: Any) -> Any:
        if self._is_queue:
            state = self._state
            state.apply(e.MessagesPurged(state.last_at, tuple(message.id for message in state.messages)))
            state.version -= 1
        return snapshot(self)

    return mutated


def _saved_early(save: Any) -> Any:
    """A state that is kept as the one an event before."""

    def mutated(self: Any, stream: str, state: Any) -> None:
        state.version -= 1
        try:
            save(self, stream, state)
        finally:
            state.version += 1

    return mutated


def _thinks_it_is_whole(observe: Any) -> Any:
    def mutated(self: Any, record: RecordedEvent) -> None:
        observe(self, record)
        self.facts.complete = True

    return mutated


def _goes_no_further(caught_up: Any) -> Any:
    def mutated(state: Any, log: Any, stream: str) -> Any:
        return state if state.version else caught_up(state, log, stream)

    return mutated


def _archives_half(archive: Any) -> Any:
    def mutated(self: Any, base: int, cut: int) -> Any:
        made = archive(self, base, cut)
        return None if made is None else _Half(made._disk, base)

    return mutated


class _Half(SimulatedArchive):
    """An archive that leaves out each second event."""

    def write(self, record: RecordedEvent) -> None:
        if record.position % 2:
            super().write(record)


STORAGE_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a buffered queue risks all that it likes", "I5", f"{RECORDING}._may_risk_more", returning(True), "durability"
    ),
    Mutant("ids of lost messages are given again", "I7", f"{RECORDING}._rebuild", _ids_again, "storage"),
    Mutant("a buffered queue is made again too early", "I3", f"{RECORDING}._record", _risks_all, "shutdowns"),
    Mutant(
        "a journal that stops leaves what it was given",
        "C3",
        "mpreg_mq.actors.journal:JournalActor.on_stop",
        _stops_at_once,
        "shutdowns",
    ),
    Mutant("a queue in memory is written", "I5", "mpreg_mq.actors.store:Store.at", _written_all_the_same, "durability"),
    Mutant(
        "a log in memory forgets an event",
        "I5",
        "mpreg_mq.events.memory:MemoryEventLog.append_next",
        _memory_leaks,
        "durability",
    ),
    Mutant("a power cut takes what was synced", "I5", f"{DISK}.cut_power", _takes_what_is_safe, "durability"),
    Mutant("a power cut leaves a hole", "I7", f"{DISK}.cut_power", _takes_the_middle, "durability"),
    Mutant("a cut forgets dead letters", "I4", FOLD, _base_without("dead_letters", "_entries"), "retention"),
    Mutant("a cut counts from zero", "I4", FOLD, _base_without("statistics", "counts"), "retention"),
    Mutant("a cut forgets unfinished messages", "I4", FOLD, _base_without_messages, "retention"),
    Mutant("a cut forgets attempts", "I4", FOLD, _base_without_attempts, "retention"),
    Mutant("a cut forgets deduplication keys", "I4", FOLD, _base_without_keys, "retention"),
    Mutant("a state is saved as the one before", "I4", "mpreg_mq.actors.store:Store.save", _saved_early, "retention"),
    Mutant(
        "a cut log is checked as a whole one",
        "I3",
        "mpreg_mq.invariants.checker:_StreamChecker.observe",
        _thinks_it_is_whole,
        "retention",
    ),
    Mutant(
        "a start forgets what came after a snapshot",
        "I4",
        "mpreg_mq.projections.loading:_caught_up",
        _goes_no_further,
        "retention",
    ),
    Mutant(
        "a cut keeps nothing in the place of what goes",
        "I4",
        "mpreg_mq.events.memory:MemoryEventLog._begin_at",
        returning(None),
        "retention",
    ),
    Mutant(
        "an archive leaves events out",
        "I4",
        "mpreg_mq.testing.retention:SimulatedCompactor._archive",
        _archives_half,
        "retention",
    ),
)
