"""pytest fixtures for queues, and the log of a test that failed in its report.

Registered through the entry point ``pytest11``: where mpreg-mq is installed the fixtures are there. This module lies
beside the package, not in it, and imports the package when a fixture is first used: pytest loads it in every run, and
a package that is loaded before its tests' coverage is measured seems never to have run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mpreg_mq.clock import VirtualClock
    from mpreg_mq.events.log import EventLog, RecordedEvent
    from mpreg_mq.events.memory import MemoryEventLog
    from mpreg_mq.manager import MessageQueueManager

SHOWN_EVENTS = 200
"""How many events of the log, the latest, a failure's report shows."""

SECTION = "mpreg-mq event log"

_LOG: pytest.StashKey[Any] = pytest.StashKey()


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that moves only when told to: ``await virtual_clock.advance(60)``."""
    from mpreg_mq.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def event_log(request: pytest.FixtureRequest) -> Iterator[MemoryEventLog]:
    """An event log in memory. When the test fails, the log is in its report."""
    from mpreg_mq.events.memory import MemoryEventLog

    log = MemoryEventLog()
    request.node.stash[_LOG] = log
    yield log
    log.close()


@pytest.fixture
def queue_manager(event_log: MemoryEventLog, virtual_clock: VirtualClock) -> Iterator[MessageQueueManager]:
    """A queue manager on ``event_log`` and ``virtual_clock``, shut down after the test."""
    from mpreg_mq.manager import MessageQueueManager

    manager = MessageQueueManager(log=event_log, clock=virtual_clock)
    yield manager
    manager.shutdown_sync()


@pytest.fixture
def assert_delivery_invariants(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that asserts the rules of docs/semantics.md over a log: ``event_log`` unless another is given."""

    def check(log: EventLog | None = None) -> None:
        from mpreg_mq.invariants import check_history

        if log is None:
            log = request.getfixturevalue("event_log")
        violations = check_history(log)
        if violations:
            told = "\n".join(str(violation) for violation in violations[:10])
            pytest.fail(f"{len(violations)} violations of the delivery rules, the first:\n{told}", pytrace=False)

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show the log's events in the report of a test that failed."""
    report: pytest.TestReport = yield
    if report.failed and _LOG in item.stash:
        report.sections.append((SECTION, shown(item.stash[_LOG])))
    return report


def shown(log: EventLog) -> str:
    """The latest events of a log, a line each, with the seconds since its first."""
    from mpreg_mq.replay.wording import in_words, subject

    if log.closed:
        return "the log is closed"
    records: list[RecordedEvent] = list(log.read_all())
    if not records:
        return "the log is empty"
    start = records[0].event.at
    lines = [f"{len(records)} events, the latest {SHOWN_EVENTS}:"] if len(records) > SHOWN_EVENTS else []
    for record in records[-SHOWN_EVENTS:]:
        event = record.event
        about = f"{record.stream.removeprefix('queue:')} {subject(event)}".rstrip()
        lines.append(f"{record.position:5} {event.at - start:10.3f} s  {about:24}  {in_words(event)}")
    return "\n".join(lines)
