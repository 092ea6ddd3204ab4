"""The checker: takes the events of a log one after another and says which rules they break.

Cost is O(1) rules for each event, because events go only to the rules that care about their type; memory follows
what is live (unfinished messages, subscribers, keys, dead letters), not the length of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.facts import LogFacts, QueueFacts
from mpreg_mq.invariants.rule import Expectation, Rule
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
        rules: which rules to check; all of them by default. I1 is always checked.

    A stream whose first record is not version 1 is checked without what happened before: rules then say nothing of
    messages and subscribers that they did not see begin.
    """

    def __init__(self, rules: Sequence[type[Rule]] = ALL_RULES) -> None:
        self._rules = tuple(rules)
        self._streams: dict[str, _StreamChecker] = {}
        self._log = LogFacts()
        self._last: RecordedEvent | None = None
        self.violations: list[Violation] = []
        """What was found so far; at most :data:`MAX_VIOLATIONS`."""
        self.events = 0
        """Records observed."""

    def observe(self, record: RecordedEvent) -> None:
        """Take the next record in; O(log n) in the messages that are live."""
        last = self._last
        if last is not None and record.position != last.position + 1:
            self._report(
                Violation(
                    "I1",
                    record.position,
                    record.stream,
                    None,
                    f"position {record.position} follows position {last.position}; positions have no gaps",
                    (last, record),
                )
            )
        self._last = record
        self.events += 1
        stream = self._streams.get(record.stream)
        if stream is None:
            rules = self._rules if record.stream.startswith(QUEUE_STREAMS) else ()
            facts = QueueFacts(record.stream, self._log)
            stream = self._streams[record.stream] = _StreamChecker(facts, rules, self._report)
        stream.observe(record)

    def observe_all(self, records: Iterable[RecordedEvent]) -> InvariantChecker:
        """Take these records in; returns the checker itself."""
        observe = self.observe
        for record in records:
            observe(record)
        return self

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


class _StreamChecker:
    """The rules and facts of one stream."""

    def __init__(self, facts: QueueFacts, rules: Sequence[type[Rule]], report: Callable[[Violation], None]) -> None:
        self.facts = facts
        self._report = report
        self._expected: list[Expectation] = []
        self._rules = [rule(facts, report, self._expected) for rule in rules]
        self._checks: dict[type[e.Event], tuple[Check, ...]] = {}
        self._last: RecordedEvent | None = None

    def observe(self, record: RecordedEvent) -> None:
        event: Any = record.event
        kind = type(event)
        facts = self.facts
        last = self._last
        if last is None:
            facts.complete = record.version == 1
        elif record.version != last.version + 1 or event.at < last.event.at:
            self._report_gap(last, record)
        self._last = record
        if kind in _OF_ONE_MESSAGE:
            facts.focus(event)
        expected = self._expected
        if expected:
            now, expected[:] = expected[:], []
            expected += [expectation for expectation in now if not expectation(record)]
        checks = self._checks.get(kind)
        if checks is None:
            checks = self._checks[kind] = self._checks_of(kind)
        if facts.configuration is not None or kind is e.QueueCreated:
            for check in checks:
                check(record, event)
        elif facts.complete and self._rules:
            self._report(
                Violation(
                    "I3",
                    record.position,
                    record.stream,
                    getattr(event, "message_id", None),
                    f"{kind.__name__} in a stream that does not begin with QueueCreated",
                    (record,),
                )
            )
        facts.apply(record)

    def _report_gap(self, last: RecordedEvent, record: RecordedEvent) -> None:
        sentence = (
            f"version {record.version} of {record.stream} follows version {last.version}; versions have no gaps"
            if record.version != last.version + 1
            else f"time runs back by {last.event.at - record.event.at:g} s in {record.stream}"
        )
        self._report(Violation("I1", record.position, record.stream, None, sentence, (last, record)))

    def _checks_of(self, kind: type[e.Event]) -> tuple[Check, ...]:
        return tuple(getattr(rule, rule.HANDLED[kind]) for rule in self._rules if kind in rule.HANDLED)

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


def check_history(records: Iterable[RecordedEvent], rules: Sequence[type[Rule]] = ALL_RULES) -> list[Violation]:
    """The violations of a whole history."""
    return InvariantChecker(rules).observe_all(records).finish()


def recorded(events: Iterable[e.Event], stream: str = "queue:q") -> list[RecordedEvent]:
    """Events as the records of a log that holds only this stream."""
    return [RecordedEvent(number, stream, number, event) for number, event in enumerate(events, 1)]
