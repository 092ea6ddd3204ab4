"""The checker: takes the events of a log one after another and says which rules they break.

Cost is O(1) rules for each event, because events go only to the rules that care about their type; memory follows
what is live (unfinished messages, subscribers, keys, dead letters), not the length of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.events.log import EventLog, RecordedEvent
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.events.sqlite import SQLiteEventLog
from mpreg_mq.invariants.facts import LogFacts, QueueFacts, Taking
from mpreg_mq.invariants.plain import COVERED, PLAIN
from mpreg_mq.invariants.rule import Expectation, RuleFactory
from mpreg_mq.invariants.rules import ALL_RULES
from mpreg_mq.invariants.violation import Violation

MAX_VIOLATIONS = 1000
"""Most violations that are kept; a history that breaks so many rules has one fault that explains them."""

QUEUE_STREAMS = "queue:"
"""How the names of queues' streams begin; of other streams only I1 is checked."""

Check = Callable[[RecordedEvent, Any], None]


class InvariantChecker:
    """Checks the records of one log, in order of their positions.

    Args:
        rules: which rules to check, as classes or whatever else makes them; all of them by default. I1 is always
            checked.
        plain: whether rules may be passed over that have nothing to say about a plain event (see
            :mod:`mpreg_mq.invariants.plain`). Without, each is asked about each event, for the same result.
        gapless: whether positions have no gaps, as in memory and in SQLite. In a replicated log, and in an export of
            some of a log's streams, they only rise.

    A stream whose first record is not version 1 is checked without what happened before: rules then say nothing of
    messages and subscribers that they did not see begin.
    """

    def __init__(self, rules: Sequence[RuleFactory] = ALL_RULES, *, plain: bool = True, gapless: bool = True) -> None:
        self._rules = tuple(rules)
        self._plain = plain
        self._gapless = gapless
        self._streams: dict[str, _StreamChecker] = {}
        self._log = LogFacts()
        self._last: RecordedEvent | None = None
        self.violations: list[Violation] = []
        """What was found so far; at most :data:`MAX_VIOLATIONS`."""
        self.events = 0
        """Records observed."""

    def observe(self, record: RecordedEvent) -> None:
        """Take the next record in; O(log n) in the messages that are live."""
        self.observe_all((record,))

    def observe_all(self, records: Iterable[RecordedEvent]) -> InvariantChecker:
        """Take these records in; returns the checker itself."""
        last = self._last
        name: str | None = None
        observe: Callable[[RecordedEvent], None] = _nowhere
        count = 0
        try:
            for record in records:
                if last is not None and record.position != last.position + 1:
                    self._report_place(last, record)
                last = record
                count += 1
                if record.stream != name:
                    name = record.stream
                    observe = self._stream(name).observe
                observe(record)
        finally:
            self._last = last
            self.events += count
        return self

    def _stream(self, name: str) -> _StreamChecker:
        stream = self._streams.get(name)
        if stream is None:
            rules = self._rules if name.startswith(QUEUE_STREAMS) else ()
            facts = QueueFacts(name, self._log)
            stream = self._streams[name] = _StreamChecker(facts, rules, self._report, self._plain)
        return stream

    def _report_place(self, last: RecordedEvent, record: RecordedEvent) -> None:
        if record.position > last.position and not self._gapless:
            return
        rule = "positions have no gaps" if self._gapless else "positions rise"
        sentence = f"position {record.position} follows position {last.position}; {rule}"
        self._report(Violation("I1", record.position, record.stream, None, sentence, (last, record)))

    def finish(self, *, cut: bool = False) -> list[Violation]:
        """What was found, after a last look at what the log leaves open; O(n log n).

        With ``cut`` the history ends anywhere, perhaps between the events of one decision, and what would have had to
        follow at once is not missed.
        """
        for stream in self._streams.values():
            stream.finish(cut)
        return self.violations

    def facts(self, stream: str) -> QueueFacts | None:
        """What the events of a stream said so far; None for an unknown stream."""
        found = self._streams.get(stream)
        return None if found is None else found.facts

    def _report(self, violation: Violation) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(violation)


def _nowhere(record: RecordedEvent) -> None:
    """Stands for the checker of a stream until there is a record, and with it a stream."""


class _Plan(NamedTuple):
    """What is done with the events of one type.

    ``checks`` are those of all rules that care about it, ``rest`` those that are made where ``plain`` says that the
    others have nothing to say, and ``unconfigured`` those that are made before there is a configuration; then ``take``
    takes the event in.
    """

    of_one_message: bool
    plain: Callable[[QueueFacts, Any], bool] | None
    checks: tuple[Check, ...]
    rest: tuple[Check, ...]
    take: Taking
    unconfigured: tuple[Check, ...]


class _StreamChecker:
    """The rules and facts of one stream."""

    def __init__(
        self, facts: QueueFacts, rules: Sequence[RuleFactory], report: Callable[[Violation], None], plain: bool
    ) -> None:
        self.facts = facts
        self._report = report
        self._expected: list[Expectation] = []
        self._rules = [rule(facts, report, self._expected) for rule in rules]
        self._plain = plain
        self._plans: dict[type[e.Event], _Plan] = {}

    def observe(self, record: RecordedEvent) -> None:
        event: Any = record.event
        kind = type(event)
        facts = self.facts
        last = facts.previous
        if last is None:
            facts.complete = record.version == 1
        elif record.version != last.version + 1 or event.at < last.event.at:
            self._report_gap(last, record)
        of_one_message, plain, checks, rest, take, _ = self._plans.get(kind) or self._plan(kind)
        if self._expected:
            self._look(record, of_one_message)
        if plain is not None:
            if plain(facts, event):
                checks = rest
        elif of_one_message:
            facts.focus(event)
        if facts.configuration is None and kind is not e.QueueCreated:
            checks = self._unconfigured(record)
        for check in checks:
            check(record, event)
        take(facts, record, event)
        facts.version += 1
        facts.previous = record

    def _unconfigured(self, record: RecordedEvent) -> tuple[Check, ...]:
        """The checks that can be made before there is a configuration."""
        kind = type(record.event)
        if self.facts.complete and self._rules:
            self._report(
                Violation(
                    "I3",
                    record.position,
                    record.stream,
                    getattr(record.event, "message_id", None),
                    f"{kind.__name__} in a stream that does not begin with QueueCreated",
                    (record,),
                )
            )
        return self._plans[kind].unconfigured

    def _look(self, record: RecordedEvent, of_one_message: bool) -> None:
        """Have what is expected look at the record."""
        if of_one_message:
            self.facts.focus(record.event)
        expected = self._expected
        now, expected[:] = expected[:], []
        expected += [expectation for expectation in now if not expectation(record)]

    def _report_gap(self, last: RecordedEvent, record: RecordedEvent) -> None:
        sentence = (
            f"version {record.version} of {record.stream} follows version {last.version}; versions have no gaps"
            if record.version != last.version + 1
            else f"time runs back by {last.event.at - record.event.at:g} s in {record.stream}"
        )
        self._report(Violation("I1", record.position, record.stream, None, sentence, (last, record)))

    def _plan(self, kind: type[e.Event]) -> _Plan:
        covered = COVERED.get(kind, frozenset())
        asked = [(rule, getattr(rule, rule.HANDLED[kind])) for rule in self._rules if kind in rule.HANDLED]
        plan = self._plans[kind] = _Plan(
            kind in _OF_ONE_MESSAGE,
            PLAIN.get(kind) if self._plain else None,
            tuple(check for _, check in asked),
            tuple(check for rule, check in asked if type(rule) not in covered),
            QueueFacts.taking(kind),
            tuple(check for rule, check in asked if not rule.NEEDS_CONFIGURATION),
        )
        return plan

    def finish(self, cut: bool) -> None:
        expected, self._expected[:] = self._expected[:], []
        if not cut:
            for expectation in expected:
                expectation(None)
            for rule in self._rules:
                rule.finish()


_OF_ONE_MESSAGE = frozenset(kind for kind in e.EVENT_TYPES if "message_id" in attrs.fields_dict(kind)) - {
    e.MessageEnqueued,
    e.FireAndForgetSent,
    e.DeadLetterRedriven,
}
"""Events about one message that was accepted before."""


def check_history(
    history: EventLog | Iterable[RecordedEvent],
    rules: Sequence[RuleFactory] = ALL_RULES,
    *,
    gapless: bool | None = None,
) -> list[Violation]:
    """The violations of a whole history: of a log, or of its records.

    ``gapless`` says whether positions have no gaps, as for :class:`InvariantChecker`. Unless it is given, that goes by
    the kind of log, and records alone should have none.
    """
    of_log = hasattr(history, "read_all")
    records = cast(EventLog, history).read_all() if of_log else cast("Iterable[RecordedEvent]", history)
    if gapless is None:
        gapless = not of_log or has_no_gaps(history)
    return InvariantChecker(rules, gapless=gapless).observe_all(records).finish()


def has_no_gaps(log: object) -> bool:
    """Whether the positions of a log have no gaps by its nature."""
    return isinstance(log, SQLiteEventLog | MemoryEventLog)


def recorded(events: Iterable[e.Event], stream: str = "queue:q") -> list[RecordedEvent]:
    """Events as the records of a log that holds only this stream."""
    return [RecordedEvent(number, stream, number, event) for number, event in enumerate(events, 1)]
