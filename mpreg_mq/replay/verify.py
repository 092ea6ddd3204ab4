"""Whether a log keeps the promises of docs/semantics.md: every rule that a history can show, and the log itself.

The rules are those of :mod:`mpreg_mq.invariants`. Besides, every record's checksum and place in the chain is checked on
reading, the structure of the file is, every queue is folded and compared with the snapshots that the log keeps, and
what stands for events that were compacted is read, of a queue without any other as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog, MemoryEventLog, SQLiteEventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.events.transfer import base_of, truncated
from mpreg_mq.invariants import ALL_RULES, InvariantChecker, Rule, Violation
from mpreg_mq.invariants.rules.log import Fold
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
    folds: dict[str, _FoldOfLog] = {}
    asked = [rule for rule in rules if rule is not Fold]
    gapless = isinstance(log, SQLiteEventLog | MemoryEventLog)
    checker = InvariantChecker([*asked, partial(_FoldOfLog, log, folds)], gapless=gapless)
    stopped: str | None = None
    with folding():
        try:
            checker.observe_all(read(log, progress=progress))
        except ReadingStoppedError as error:
            stopped = str(error)
    idle = _without_events(log, folds)
    if stopped is None and isinstance(log, SQLiteEventLog):
        stopped = log.check_structure()
    if stopped is None:
        stopped = _damage_of_bases(log, folds, idle)
    if stopped is not None:
        for fold in folds.values():
            fold.check()
    violations = sorted(checker.finish(cut=stopped is not None), key=lambda violation: violation.position)
    ids = tuple(sorted({*(rule.id for rule in asked), "I1", "I4"}))
    queues = len(folds) + sum(stream.startswith(QUEUE_STREAMS) for stream in idle)
    return Verification(checker.events, queues, ids, tuple(violations), stopped)


def _without_events(log: EventLog, folds: Collection[str]) -> list[str]:
    """The streams of which nothing is left but what stands for truncated events."""
    kept = retaining(log)
    return [] if kept is None else [stream for stream in truncated(kept) if stream not in folds]


def _damage_of_bases(log: EventLog, folds: Mapping[str, _FoldOfLog], idle: Iterable[str]) -> str | None:
    """What is wrong with what stands for truncated events; None where each of them can be gone on from."""
    for fold in folds.values():
        if fold.damage is not None:
            return fold.damage
    kept = retaining(log)
    try:
        for stream in idle:
            if stream.startswith(QUEUE_STREAMS):
                base_state(log, stream)
            elif kept is not None:
                base_of(kept, stream)
    except EventLogError as error:
        return str(error)
    return None


class _FoldOfLog(Fold):
    """I4 for a queue of a log: the fold begins with what stands for compacted events, and agrees with snapshots."""

    NEEDS_CONFIGURATION = False

    def __init__(self, log: EventLog, folds: dict[str, _FoldOfLog], *arguments: Any) -> None:
        super().__init__(*arguments)
        folds[self.facts.stream] = self
        self._log = log
        self.damage: str | None = None
        """Why there is nothing that it can begin with, where that is so."""
        kept = retaining(log)
        if kept is not None:
            self.snapshots = {found.version: found.body for found in kept.snapshots(self.facts.stream)}

    def begin(self) -> QueueState | None:
        """The state before the first event that the log still has; None where that is not known any more."""
        try:
            return base_state(self._log, self.facts.stream)
        except EventLogError as error:
            self.damage = str(error)
            return None
