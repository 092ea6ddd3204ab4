"""Whether a log keeps the promises of docs/semantics.md: every rule that a history can show, and the log itself.

The rules are those of :mod:`mpreg_mq.invariants`. Besides, every record's checksum and place in the chain is checked on
reading, the structure of the file is, every queue is folded and compared with the snapshots that the log keeps, and
what stands for events that were compacted is read, of a queue without any other as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import EventLog, SQLiteEventLog
from mpreg_mq.events.log import retaining
from mpreg_mq.events.transfer import base_of, truncated
from mpreg_mq.invariants import ALL_RULES, InvariantChecker, Rule, Violation
from mpreg_mq.invariants.checker import has_no_gaps
from mpreg_mq.invariants.rules.log import Fold
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_state
from mpreg_mq.replay.records import Progress, ReadingStoppedError, folding, read, silent
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position


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


@again_if_overtaken
def verify(log: EventLog, *, rules: Sequence[type[Rule]] = ALL_RULES, progress: Progress = silent) -> Verification:
    """Check a whole log; one pass, and memory bounded by what is unfinished."""
    base = base_position(log)
    states, damage = _bases(log, base)
    folds: dict[str, _FoldOfLog] = {}
    asked = [rule for rule in rules if rule is not Fold]
    checker = InvariantChecker([*asked, partial(_FoldOfLog, log, states, folds)], gapless=has_no_gaps(log))
    stopped: str | None = None
    with folding():
        try:
            checker.observe_all(read(log, base=base, progress=progress))
        except ReadingStoppedError as error:
            if base_position(log) != base:
                raise
            stopped = str(error)
    if stopped is None and isinstance(log, SQLiteEventLog):
        stopped = log.check_structure()
    if stopped is None:
        stopped = damage
    if stopped is not None:
        for fold in folds.values():
            fold.check()
    violations = sorted(checker.finish(cut=stopped is not None), key=lambda violation: violation.position)
    ids = tuple(sorted({*(rule.id for rule in asked), "I1", "I4"}))
    queues = len({*folds, *(stream for stream in states if stream.startswith(QUEUE_STREAMS))})
    return Verification(checker.events, queues, ids, tuple(violations), stopped)


def _bases(log: EventLog, base: int) -> tuple[dict[str, QueueState | None], str | None]:
    """What stands for truncated events by stream, None where it cannot be gone on from, and what is wrong then."""
    kept = retaining(log)
    states: dict[str, QueueState | None] = {}
    damage: str | None = None
    for stream in [] if kept is None else truncated(kept):
        states[stream] = None
        try:
            if stream.startswith(QUEUE_STREAMS):
                states[stream] = base_state(log, stream)
            elif kept is not None:
                base_of(kept, stream)
        except EventLogError as error:
            if base_position(log) != base:
                raise
            damage = damage or str(error)
    return states, damage


class _FoldOfLog(Fold):
    """I4 for a queue of a log: the fold begins with what stands for compacted events, and agrees with snapshots."""

    NEEDS_CONFIGURATION = False

    def __init__(
        self, log: EventLog, states: Mapping[str, QueueState | None], folds: dict[str, _FoldOfLog], *arguments: Any
    ) -> None:
        super().__init__(*arguments)
        folds[self.facts.stream] = self
        self._states = states
        kept = retaining(log)
        if kept is not None:
            self.snapshots = {found.version: found.body for found in kept.snapshots(self.facts.stream)}

    def begin(self) -> QueueState | None:
        """The state before the first event that the log still has; None where that is not known any more."""
        return self._states.get(self.facts.stream, QueueState())
