"""Whether a log keeps the promises of docs/semantics.md: every rule that a history can show, and the log itself.

The rules are those of :mod:`mpreg_mq.invariants`. Besides, every record's checksum and place in the chain is checked on
reading, the structure of the file is, and every queue is folded and compared with the snapshots that the log keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent, SQLiteEventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.invariants import ALL_RULES, InvariantChecker, Rule, Violation
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import base_state
from mpreg_mq.replay.records import Progress, ReadingStoppedError, folding, read, silent
from mpreg_mq.replay.source import QUEUE_STREAMS


@attrs.frozen
class Verification:
    """What was checked, and what was found.

    ``stopped`` says how far the log is readable and why no further; None where it was read to its end. It is then no
    promise of a queue that is broken, but the log.
    """

    events: int
    queues: int
    rules: tuple[str, ...]
    violations: tuple[Violation, ...]
    stopped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the log is whole and no promise was broken."""
        return not self.violations and self.stopped is None


def verify(log: EventLog, *, rules: Sequence[type[Rule]] = ALL_RULES, progress: Progress = silent) -> Verification:
    """Check a whole log; one pass, and memory bounded by what is unfinished."""
    checker = InvariantChecker(rules)
    folds: dict[str, _Fold] = {}
    stopped: str | None = None
    observe = checker.observe
    last_stream = ""
    fold: _Fold | None = None
    with folding():
        try:
            for record in read(log, progress=progress):
                observe(record)
                if record.stream != last_stream:
                    last_stream = record.stream
                    fold = _fold_of(log, folds, record)
                if fold is not None:
                    fold.take(record)
        except ReadingStoppedError as error:
            stopped = str(error)
    if stopped is None and isinstance(log, SQLiteEventLog):
        stopped = log.check_structure()
    violations = list(checker.finish(cut=stopped is not None))
    for folded in folds.values():
        violations += folded.finish()
    violations.sort(key=lambda violation: violation.position)
    ids = tuple(sorted({*(rule.id for rule in rules), "I1", "I4"}))
    return Verification(checker.events, len(folds), ids, tuple(violations), stopped)


def _fold_of(log: EventLog, folds: dict[str, _Fold], record: RecordedEvent) -> _Fold | None:
    if not record.stream.startswith(QUEUE_STREAMS):
        return None
    fold = folds.get(record.stream)
    if fold is None:
        fold = folds[record.stream] = _Fold(log, record.stream)
    return fold


class _Fold:
    """A queue folded by the very projections of the live queue: that they can, and that they agree, is rule I4."""

    def __init__(self, log: EventLog, stream: str) -> None:
        self._stream = stream
        self._state: QueueState | None = base_state(log, stream)
        kept = retaining(log)
        self._snapshots = {} if kept is None else {found.version: found.body for found in kept.snapshots(stream)}
        self._last: RecordedEvent | None = None
        self._violations: list[Violation] = []

    def take(self, record: RecordedEvent) -> None:
        """Fold one event in; after one that cannot be, the queue is not folded any more."""
        if self._state is None:
            return
        try:
            self._state.apply(record.event)
        except ProjectionError as error:
            self._report(record, f"the fold cannot take it in: {error}")
            self._state = None
        else:
            self._last = record
            if record.version in self._snapshots:
                self._compare(record, self._snapshots.pop(record.version))

    def _compare(self, record: RecordedEvent, body: bytes) -> None:
        """A snapshot that the log keeps is the state that its events fold to."""
        assert self._state is not None
        try:
            kept = QueueState.restore(body)
        # A body that is not what was dumped may raise anything.
        except Exception as error:
            self._report(record, f"the snapshot after it cannot be read: {type(error).__name__}: {error}")
            return
        if kept is None:
            return
        before, after = kept.describe(), self._state.describe()
        parts = ", ".join(part for part in after if before[part] != after[part])
        if parts:
            self._report(record, f"the snapshot after it and the fold of the events differ in {parts}")

    def finish(self) -> list[Violation]:
        """What the fold showed, after its own consistency was checked."""
        if self._state is not None and self._last is not None:
            try:
                self._state.check()
            except AssertionError as broken:
                self._report(self._last, f"the folded state does not agree with itself: {broken or 'a check failed'}")
        return self._violations

    def _report(self, record: RecordedEvent, sentence: str) -> None:
        message_id = getattr(record.event, "message_id", None)
        evidence = (record,) if self._last is None or self._last is record else (self._last, record)
        self._violations.append(Violation("I4", record.position, self._stream, message_id, sentence, evidence))
