"""What every rule is: a small class that looks at each event it cares about, before that event is taken in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.events.types import Event
from mpreg_mq.invariants.facts import QueueFacts
from mpreg_mq.invariants.violation import Violation

Report = Callable[[Violation], None]
Expectation = Callable[[RecordedEvent | None], bool]
"""Looks at the next record (None at the end of the log); True once there is nothing more to look for."""


class Rule:
    """One rule for one queue.

    ``HANDLED`` names the method for each event type the rule cares about; the method gets the record and the event,
    and ``facts`` are those before it. A rule that keeps something of its own says in its docstring what it is.
    """

    id: ClassVar[str]
    """As in docs/semantics.md."""
    HANDLED: ClassVar[Mapping[type[Event], str]] = {}
    NEEDS_CONFIGURATION: ClassVar[bool] = True
    """Whether its handlers run only once the configuration of the queue is known."""

    def __init__(self, facts: QueueFacts, report: Report, expected: list[Expectation]) -> None:
        self.facts = facts
        self._report = report
        self._expected = expected

    @property
    def configuration(self) -> QueueConfiguration:
        """The configuration in force, for handlers that run only once there is one."""
        configuration = self.facts.configuration
        assert configuration is not None
        return configuration

    @property
    def unseen(self) -> bool:
        """Whether the event is about a message that may have been accepted before the first event that is there."""
        return self.facts.message is None and not self.facts.complete

    def violated(
        self,
        record: RecordedEvent,
        sentence: str,
        *evidence: RecordedEvent | None,
        message_id: str | None = None,
    ) -> None:
        """Report that ``record`` breaks the rule, with the records that show it."""
        named = message_id if message_id is not None else getattr(record.event, "message_id", None)
        shown = {found.position: found for found in evidence if found is not None}
        shown.pop(record.position, None)
        ordered = tuple(shown[position] for position in sorted(shown))
        self._report(Violation(self.id, record.position, self.facts.stream, named, sentence, (*ordered, record)))

    def expect(self, expectation: Expectation) -> None:
        """Have ``expectation`` look at the following records of the stream until it says that it is done."""
        self._expected.append(expectation)

    def finish(self) -> None:
        """The log is at its end."""


RuleFactory = Callable[[QueueFacts, Report, list[Expectation]], Rule]
"""What makes a rule for a queue: its class, or a call of it with more arguments."""
