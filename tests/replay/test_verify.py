"""Verify: healthy logs pass, and each kind of broken promise is named with its rule, position, message and evidence."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mpreg_mq.events import Append, EventLog, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.events.transfer import export_log
from mpreg_mq.replay import open_history
from mpreg_mq.replay.fork import fork
from mpreg_mq.replay.verify import verify
from tests.support.history import History


def logged(*histories: History) -> MemoryEventLog:
    """A log with a queue for each history."""
    log = MemoryEventLog()
    for number, history in enumerate(histories):
        log.append([Append(f"queue:{number}", 0, history.events)])
    return log


def test_a_log_of_real_queues_keeps_every_promise(log: EventLog) -> None:
    """Given the incident's log, then nothing is broken, however much failed in it."""
    found = verify(log)
    assert found.ok, found.violations
    assert (found.events, found.queues) == (124, 2)
    assert {"I1", "I2", "I3", "I4", "R1", "L1"} <= set(found.rules)


def test_a_second_end_is_named_with_both() -> None:
    """Given a message that ends twice, then the rule, the message and the two events that contradict are told."""
    history = History().joined("a").sent("1").delivered("1", "a").acknowledged("1", "a").acknowledged("1", "a")
    found = verify(logged(history))
    assert not found.ok
    rules = {violation.rule for violation in found.violations}
    assert "I4" in rules, "the live queue could not have gone on either"
    (violation, *_) = [v for v in found.violations if v.rule != "I4"]
    assert (violation.message_id, violation.position) == ("1", 6)
    assert {record.position for record in violation.evidence} >= {5, 6}


def test_an_export_of_one_queue_keeps_every_promise(log: EventLog, tmp_path: Path) -> None:
    """Given an export of one of two queues, whose positions have gaps, then nothing is broken."""
    path = tmp_path / "orders.jsonl"
    export_log(log, path, streams=["queue:orders"])
    with closing(open_history(path)) as exported:
        found = verify(exported)
    assert found.ok, found.violations
    assert found.queues == 1


def test_too_many_attempts_are_told() -> None:
    """Given more attempts than max_retries allows, then R1 is broken there."""
    history = History(max_retries=0).joined("a").sent("1").delivered("1", "a").failed("1", "a").requeued("1", 0.0)
    history.delivered("1", "a", 2)
    assert ("R1", 6) in {(v.rule, v.position) for v in verify(logged(history)).violations}


def test_violations_of_all_queues_come_in_the_order_of_the_log() -> None:
    """Given broken promises in two queues, then all are told, the first one first."""
    broken = History().joined("a").sent("1").delivered("1", "a").delivered("1", "a", 2)
    found = verify(logged(broken, broken))
    positions = [violation.position for violation in found.violations]
    assert positions == sorted(positions)
    assert {violation.stream for violation in found.violations} == {"queue:0", "queue:1"}


def test_a_damaged_log_is_checked_as_far_as_it_goes(tmp_path: Path, log: EventLog) -> None:
    """Given a log that is damaged in the middle, then it says how far it is readable, and nothing is made up."""
    path = tmp_path / "copy.db"
    fork(log, path)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE records SET body = x'ff' WHERE position BETWEEN 60 AND 70")
    connection.close()
    with closing(open_history(path)) as damaged:
        found = verify(damaged)
    assert not found.ok
    assert found.violations == ()
    assert found.stopped is not None
    assert "readable up to position" in found.stopped
    assert 0 < found.events < 70


def test_streams_that_are_no_queues_are_checked_for_gaps_only() -> None:
    """Given routes among the queues, then they break nothing."""
    log = logged(History())
    log.append([Append("routes:topics", 0, [e.TopicRouteRemoved(1.0, "#", "q")])])
    assert verify(log).ok


@pytest.mark.parametrize("changed", ["deadline", "attempt"])
def test_one_changed_field_is_noticed(changed: str) -> None:
    """Given a real story with one field changed, then a rule is broken."""
    history = History().joined("a").sent("1").delivered("1", "a").acknowledged("1", "a")
    assert verify(logged(history)).ok
    value = {"deadline": 0.0, "attempt": 7}[changed]
    fields = {
        name: getattr(history.events[3], name) for name in ("at", "message_id", "subscriber_id", "subscription_id")
    }
    fields |= {"attempt": 1, "deadline": history.now + 300.0, changed: value}
    history.events[3] = e.MessageDelivered(**fields)
    assert not verify(logged(history)).ok
