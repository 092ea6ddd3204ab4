"""The pytest plugin: its fixtures, and the log in the report of a failing test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mpreg_mq.clock import VirtualClock
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.manager import MessageQueueManager
from pytest_mpreg_mq import SHOWN_EVENTS, shown
from tests.support.history import History

pytest_plugins = ["pytester"]

FAILING = """
import asyncio

def test_fails(queue_manager, virtual_clock, assert_delivery_invariants):
    async def story():
        await queue_manager.create_queue("orders")
        await queue_manager.send_message("orders", "order.paid", {"id": 1})
        (message,) = await queue_manager.receive_messages("orders", "worker")
        await virtual_clock.advance(31)
    asyncio.run(story())
    assert_delivery_invariants()
    assert False, "what happened?"

def test_passes(event_log):
    assert event_log.last_position() == 0
"""


def test_a_failing_test_shows_its_log(pytester: pytest.Pytester) -> None:
    """Given a test that fails, then its report tells what happened in the queue; one that passes tells nothing."""
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*what happened?*",
            "*- mpreg-mq event log -*",
            "*0.000 s  orders 1-*accepted on order.paid, at_least_once, *bytes",
            "*fetched by worker, attempt 1, leased for 30 s",
            "*30.000 s  orders 1-*lease of worker*",
        ]
    )
    assert result.stdout.str().count("mpreg-mq event log") == 1


def test_the_fixtures_belong_together(
    queue_manager: MessageQueueManager,
    event_log: MemoryEventLog,
    virtual_clock: VirtualClock,
    assert_delivery_invariants: Callable[..., None],
) -> None:
    """Given the fixtures, then the manager writes to the log and goes by the clock."""
    assert queue_manager.log is event_log
    assert virtual_clock.now() == 1_000_000.0
    assert_delivery_invariants()


def test_broken_rules_fail_the_test(event_log: MemoryEventLog, assert_delivery_invariants: Callable[..., None]) -> None:
    """Given a log that breaks a rule, then the assertion fails and says which; for any log that is given."""
    event_log.append((Append("queue:q", 0, History().sent("1-r").sent("1-r").events),))
    with pytest.raises(pytest.fail.Exception, match="S1 at position 3"):
        assert_delivery_invariants()
    other = MemoryEventLog()
    assert_delivery_invariants(other)


def test_what_is_shown_of_a_log() -> None:
    """Given an empty, a long and a closed log, then each is shown in bounds."""
    log = MemoryEventLog()
    assert shown(log) == "the log is empty"
    log.append((Append("queue:q", 0, [e.QueuePaused(5.0 + number) for number in range(SHOWN_EVENTS + 5)]),))
    lines = shown(log).splitlines()
    assert len(lines) == SHOWN_EVENTS + 1
    assert lines[0] == f"{SHOWN_EVENTS + 5} events, the latest {SHOWN_EVENTS}:"
    log.close()
    assert shown(log) == "the log is closed"
