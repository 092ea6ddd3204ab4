"""Whether a log keeps the promises of docs/semantics.md: every rule that a history can show, and the log itself.

The rules are those of :mod:`mpreg_mq.invariants`. Besides, every record's checksum and place in the chain is checked on
reading, the structure of the file is, and every queue is folded and compared with the snapshots that the log keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs

from mpreg_mq.events import EventLog, MemoryEventLog, SQLiteEventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.invariants import ALL_RULES, InvariantChecker, Rule, Violation
from mpreg_mq.invariants.rules.log import Fold
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import base_state
from mpreg_mq.replay.records import Progress, ReadingStoppedError, folding, read, silent


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
    folds: list[_FoldOfLog] = []
    asked = [rule for rule in rules if rule is not Fold]
    gapless = isinstance(log, SQLiteEventLog | MemoryEventLog)
    checker = InvariantChecker([*asked, partial(_FoldOfLog, log, folds)], gapless=gapless)
    stopped: str | None = None
    with folding():
        try:
            checker.observe_all(read(log, progress=progress))
        except ReadingStoppedError as error:
            stopped = str(error)
    if stopped is None and isinstance(log, SQLiteEventLog):
        stopped = log.check_structure()
    if stopped is not None:
        for fold in folds:
            fold.check()
    violations = sorted(checker.finish(cut=stopped is not None), key=lambda violation: violation.position)
    ids = tuple(sorted({*(rule.id for rule in asked), "I1", "I4"}))
    return Verification(checker.events, len(folds), ids, tuple(violations), stopped)


class _FoldOfLog(Fold):
    """I4 for a queue of a log: the fold begins with what stands for compacted events, and agrees with snapshots."""

    NEEDS_CONFIGURATION = False

    def __init__(self, log: EventLog, folds: list[_FoldOfLog], *arguments: Any) -> None:
        super().__init__(*arguments)
        folds.append(self)
        self._log = log
        kept = retaining(log)
        if kept is not None:
            self.snapshots = {found.version: found.body for found in kept.snapshots(self.facts.stream)}

    def begin(self) -> QueueState | None:
        """The state before the first event that the log still has."""
        return base_state(self._log, self.facts.stream)
