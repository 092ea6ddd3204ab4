"""The checker around the rules: gaps (I1), streams whose beginning is missing, logs that end anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mpreg_mq.events import Append, JSONLinesEventLog, MemoryEventLog, export_log
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import MAX_VIOLATIONS, InvariantChecker, check_history
from mpreg_mq.invariants.rules.sending import Acceptance
from tests.support.history import History


def test_i1_versions_have_no_gaps() -> None:
    """Given a stream that lacks a version, then I1 names the records around the gap."""
    records = History().joined("a").sent("1-r").records
    del records[1]
    records = [msgspec.structs.replace(record, position=number) for number, record in enumerate(records, 1)]
    (violation,) = check_history(records)
    assert (violation.rule, violation.position) == ("I1", 2)
    assert violation.evidence == tuple(records)


def test_i1_positions_have_no_gaps() -> None:
    """Given a log that lacks a position, then I1 says so though each stream is whole."""
    records = [
        *History().records,
        RecordedEvent(3, "queue:other", 1, e.QueueCreated(1000.0, "other", History().configuration)),
    ]
    assert [violation.rule for violation in check_history(records)] == ["I1"]


def test_i1_positions_rise_where_they_may_have_gaps() -> None:
    """Given a log whose positions have gaps by its nature, then a gap breaks nothing, and a step back breaks I1."""
    records = [
        msgspec.structs.replace(record, position=100_000 * number)
        for number, record in enumerate(History().joined("a").records, 1)
    ]
    assert InvariantChecker(gapless=False).observe_all(records).finish() == []
    back = [*records[:1], msgspec.structs.replace(records[1], position=100_000)]
    (violation,) = InvariantChecker(gapless=False).observe_all(back).finish()
    assert (violation.rule, violation.sentence) == ("I1", "position 100000 follows position 100000; positions rise")


def test_i1_an_export_of_one_queue_has_gaps(tmp_path: Path) -> None:
    """Given two queues that take turns, of which one is exported, then nothing is broken: its positions have gaps."""
    log = MemoryEventLog()
    history = History().joined("a").sent("1-r")
    for version, event in enumerate(history.events):
        for stream in ("queue:p", "queue:q"):
            log.append([Append(stream, version, [event])])
    export_log(log, tmp_path / "q.jsonl", streams=["queue:q"])
    exported = JSONLinesEventLog(tmp_path / "q.jsonl")
    assert check_history(exported) == []
    assert check_history(exported.read_all(), gapless=False) == []
    assert {violation.rule for violation in check_history(exported, gapless=True)} == {"I1"}
    exported.close()


def test_i1_a_log_that_has_no_gaps_by_its_nature_is_held_to_that() -> None:
    """Given a log in memory that lacks a position, then I1 says so."""

    class Lacking(MemoryEventLog):
        def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
            return (record for record in super().read_all(after_position) if record.position != 2)

    log = Lacking()
    log.append([Append("queue:p", 0, History().events), Append("queue:x", 0, History().events)])
    log.append([Append("queue:q", 0, History().events)])
    assert [violation.rule for violation in check_history(log)] == ["I1"]


def test_i1_time_does_not_run_back() -> None:
    """Given an event that is earlier than the one before it, then I1 says so."""
    history = History().joined("a").at(999.0).sent("1-r")
    assert "I1" in {violation.rule for violation in history.violations()}


def test_a_stream_begins_with_its_creation() -> None:
    """Given events of a queue that was never created, then I3 says so, once for each."""
    history = History().sent("1-r")
    del history.events[0]
    (violation,) = history.violations()
    assert (violation.rule, violation.message_id) == ("I3", "1-r")


def test_streams_that_are_no_queue_only_have_their_versions_checked() -> None:
    """Given routes beside a queue, then they break no rule of queues, and a gap in them is seen."""
    route = e.TopicRouteAdded(1000.0, "t.#", "q")
    records = [RecordedEvent(number, "routes:topics", version, route) for number, version in ((1, 1), (2, 2), (3, 4))]
    assert check_history(records[:2]) == []
    assert [violation.rule for violation in check_history(records)] == ["I1"]


def test_what_was_not_seen_to_begin_is_not_judged() -> None:
    """Given a stream whose beginning is missing, then what refers to it breaks no rule, and what is new is judged."""
    history = History().joined("a").sent("1-r").delivered("1-r", "a").acknowledged("1-r", "a")
    events = [
        *history.events[3:],
        e.QueueReconfigured(1000.0, history.configuration),
        *History().sent("2-r").events[1:],
    ]
    records = [RecordedEvent(100 + n, "queue:q", 100 + n, event) for n, event in enumerate(events)]
    assert check_history(records) == []
    twice = [*records, RecordedEvent(100 + len(records), "queue:q", 100 + len(records), events[-1])]
    assert "S1" in {violation.rule for violation in check_history(twice)}


def test_a_cut_history_is_not_blamed_for_what_it_lacks() -> None:
    """Given a history that ends between the events of one decision, then only an uncut one is blamed for that."""
    history = History().joined("a").sent("1-r").delivered("1-r", "a").failed("1-r", "a")
    checker = InvariantChecker().observe_all(history.records)
    assert checker.finish(cut=True) == []
    assert [violation.rule for violation in history.violations()] == ["R1"]


def test_violations_are_there_as_soon_as_they_are_seen() -> None:
    """Given a checker at work, then ``violations`` grows with the records, up to its limit."""
    checker = InvariantChecker([Acceptance])
    records = History().sent("1-r").records
    checker.observe_all(records)
    assert checker.violations == []
    for number in range(3, MAX_VIOLATIONS + 10):
        checker.observe(msgspec.structs.replace(records[-1], position=number, version=number))
    assert len(checker.violations) == MAX_VIOLATIONS
    assert checker.events == MAX_VIOLATIONS + 9


@pytest.mark.parametrize("waiting", [True, False], ids=["past one that waits", "one after another"])
def test_memory_follows_what_is_live(waiting: bool) -> None:
    """Given many messages that came and went, perhaps past one that nobody takes, then little is kept of them."""
    history = History().joined("a", "t")
    if waiting:
        history.sent("1-r", "elsewhere")
    for number in range(2, 5000):
        message_id = f"{number}-r"
        history.sent(message_id).delivered(message_id, "a").acknowledged(message_id, "a")
    checker = InvariantChecker().observe_all(history.records)
    assert checker.finish() == []
    facts = checker.facts("queue:q")
    assert facts is not None
    assert list(facts.messages) == (["1-r"] if waiting else [])
    assert facts.ready.size < 2100
    assert checker.facts("queue:unknown") is None
