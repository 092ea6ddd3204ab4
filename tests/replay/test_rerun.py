"""Today's code, and other settings, on what was recorded; and a message's story as a test."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from mpreg_mq import model
from mpreg_mq.actors.decider import settling
from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError, EventLogError
from mpreg_mq.events import EventLog, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, RejectionReason
from mpreg_mq.queue import MessageQueue
from mpreg_mq.replay import Moment
from mpreg_mq.replay.rerun import assert_same_story, rerun, rerun_events, story_of
from mpreg_mq.replay.rerun.story import as_code, story_as_test
from mpreg_mq.replay.verify import verify
from tests.support.history import History


def test_the_same_code_decides_the_same(log: EventLog) -> None:
    """Given a real log, then every decision comes out as it was recorded."""
    result = rerun(log)
    assert (result.count, result.followed) == (0, 0)
    assert result.decisions > 80


def test_other_code_shows_in_the_decisions_that_it_changes(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a change of the backoff, then exactly the retries differ, and each message is told once."""
    monkeypatch.setattr(settling, "backoff_seconds", lambda configuration, message_id, attempts: 7.123456)
    result = rerun(log, queue="orders")
    assert result.by_kind == {
        "DeliveryFailed + MessageRequeued -> DeliveryFailed + MessageRequeued": 1,
        "DeliveryFailed + CircuitOpened + MessageRequeued -> DeliveryFailed + CircuitOpened + MessageRequeued": 1,
    }
    (first, second) = result.differences
    assert (first.message_ids, second.message_ids) == (("11-00a1",), ("12-00a1",))
    assert result.followed > 0
    assert "recorded: attempt 1 failed at warehouse" in str(first)


def test_fewer_retries(log: EventLog) -> None:
    """Given --set max_retries=1, then the second failure is the last; what came after it is not compared."""
    result = rerun(log, changes={"max_retries": 1})
    (difference,) = result.differences
    assert [type(event) for event in difference.decided] == [e.DeliveryFailed, e.MessageDeadLettered]
    assert (difference.queue, difference.position) == ("orders", 111)
    assert result.followed == 2


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"enable_deduplication": False}, {"DuplicateRejected -> MessageEnqueued"}),
        ({"circuit_breaker_failure_threshold": None}, {"CircuitOpened"}),
        ({"enable_dead_letter_queue": False}, {"MessageFailed"}),
        ({"max_size": 3}, {"MessageEnqueued -> MessageRejected"}),
        ({"max_payload_bytes": 19}, {"MessageEnqueued -> MessageRejected"}),
        ({"message_ttl_seconds": 15}, {"nothing -> MessageExpired"}),
        ({"default_acknowledgment_timeout_seconds": 1}, {"MessageDelivered -> MessageDelivered"}),
        ({"retry_jitter": 0}, {"MessageRequeued"}),
    ],
    ids=str,
)
def test_other_settings_show_what_they_would_have_changed(
    log: EventLog, changes: dict[str, object], kinds: set[str]
) -> None:
    """Given another setting, then decisions of the kind that it is about differ."""
    found = rerun(log, changes=changes, queue="orders").by_kind
    assert found
    for kind in kinds:
        assert any(kind in name for name in found), found


def test_deduplication_that_was_off_uses_the_keys_that_sends_would_have_had() -> None:
    """Given two equal sends without deduplication, when it is switched on, then the second would be a duplicate."""
    events = History().sent("1").at(1001.0).sent("2").events
    (difference,) = rerun_events(events, changes={"enable_deduplication": True}).differences
    assert isinstance(difference.decided[0], e.DuplicateRejected)
    assert difference.decided[0].duplicate_of == "1"


@pytest.mark.parametrize("deduplicates", [False, True])
def test_u1_a_key_of_send_once_is_decided_and_verified_as_it_was(deduplicates: bool) -> None:
    """Given keys of ``send_once``, with and without a deduplication id, on a queue that deduplicates or not, then every
    promise is kept, every decision comes out the same, and what was refused as a duplicate is so still where the
    queue's own keys are switched off."""
    log = MemoryEventLog()

    async def story() -> None:
        clock = VirtualClock()
        configuration = QueueConfiguration("q", enable_deduplication=deduplicates)
        async with MessageQueue(configuration, log=log, clock=clock) as queue:
            for payload in (1, 2):
                await queue.send_once("once", "t", payload)
                await queue.send_once("other", "t", payload, deduplication_id="mine")
                await queue.send_once("gone", "t", payload, DeliveryGuarantee.FIRE_AND_FORGET)
            assert queue.get_statistics().messages_duplicate == 3

    asyncio.run(story())
    assert verify(log).violations == ()
    assert rerun(log).differences == []
    off = {
        difference.recorded[0].deduplication_key
        for difference in rerun(log, changes={"enable_deduplication": False}).differences
        if isinstance(difference.recorded[0], e.DuplicateRejected)
    }
    # The payload of a message to whoever is there is not kept, so whose key it has cannot be told.
    assert off == ({"gone"} if deduplicates else set())


def test_each_send_that_would_be_accepted_is_told() -> None:
    """Given sends that were refused as duplicates of different messages, when deduplication is switched off, then each
    is told: that none of them has an id does not make them one message."""
    history = History(enable_deduplication=True)
    history.sent("1", key="k", deduplication_id="k").sent("2", key="l", deduplication_id="l")
    history.add(e.DuplicateRejected(1000.0, "t", "k", "1"), e.DuplicateRejected(1000.0, "t", "l", "2"))
    result = rerun_events(history.events, changes={"enable_deduplication": False})
    assert result.by_kind == {"DuplicateRejected -> MessageEnqueued": 2}


def test_another_order(log: EventLog) -> None:
    """Given priorities in a FIFO queue, when it were a priority queue, then another message went first."""
    history = History().sent("1", priority=1).sent("2", priority=9).joined("a")
    events = history.delivered("1", "a").acknowledged("1", "a").delivered("2", "a").events
    (difference,) = rerun_events(events, changes={"queue_type": "priority"}).differences
    assert difference.message_ids == ("1", "2")


def test_a_delay_that_was_asked_for_is_a_fact() -> None:
    """Given a refusal with a delay of its own, then it is not taken for a backoff."""
    history = History().joined("a").sent("1").delivered("1", "a").failed("1", "a").requeued("1", 45.0)
    assert rerun_events(history.events).count == 0


def test_what_the_log_does_not_tell_is_taken_as_given() -> None:
    """Given a send that was refused for its payload, which is not in the log, then it is counted, not compared."""
    history = History()
    history.add(e.MessageRejected(1001.0, "t", RejectionReason.PAYLOAD_TOO_LARGE, "too large"))
    result = rerun_events(history.events)
    assert (result.count, result.given) == (0, {"MessageRejected": 1})


def test_settings_are_checked(log: EventLog) -> None:
    """Given an unknown setting or a value out of range, then it is an error before anything is read."""
    with pytest.raises(ConfigurationError, match="expected one of circuit_breaker_failure_threshold"):
        rerun(log, changes={"max_retry": 1})
    with pytest.raises(ConfigurationError, match="max_retries"):
        rerun(log, changes={"max_retries": -1})
    with pytest.raises(EventLogError, match="there is no queue 'nope'"):
        rerun(log, queue="nope")


def test_a_rerun_may_end_earlier(log: EventLog) -> None:
    """Given a moment, then only decisions up to it are made again."""
    assert rerun(log, changes={"max_retries": 1}, until=Moment(position=110)).count == 0


def test_a_rerun_may_end_anywhere(log: EventLog) -> None:
    """Given a position within a decision, then that decision does not count, and nothing differs."""
    decisions = [rerun(log, until=Moment(position=position)).decisions for position in range(1, 125)]
    assert decisions == sorted(decisions)
    assert [rerun(log, until=Moment(position=position)).count for position in range(1, 125)] == [0] * 124


# --- a story as a test ------------------------------------------------------------------------------------


def test_a_story_is_the_message_and_what_it_needs(log: EventLog) -> None:
    """Given a message, then its story begins with its queue, has its subscribers, and no other message."""
    found, events = story_of(log, "11-00a1")
    assert isinstance(events[0], e.QueueCreated)
    assert {getattr(event, "message_id", "11-00a1") for event in events} == {"11-00a1"}
    assert isinstance(events[-1], e.MessageDeadLettered)
    assert found.queue == "orders"
    assert_same_story(events)


@pytest.mark.parametrize("message_id", ["1-00a1", "11-00a1", "12-00a1", "14-00a1", "1-00a2"])
def test_an_exported_test_passes_with_the_code_that_recorded_it(log: EventLog, message_id: str, tmp_path: Path) -> None:
    """Given any message, when its story is exported, then pytest runs it without the log, and it passes."""
    found, events = story_of(log, message_id)
    path = tmp_path / "test_story.py"
    path.write_text(story_as_test(found, events, "orders.db"))
    code = compile(path.read_text(), str(path), "exec")
    scope: dict[str, object] = {}
    exec(code, scope)
    tests = [function for name, function in scope.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        assert callable(test)
        test()


def test_an_exported_test_is_one_for_pytest(log: EventLog, tmp_path: Path) -> None:
    """Given an exported file, then pytest finds its tests and ruff has nothing against its imports."""
    found, events = story_of(log, "11-00a1")
    path = tmp_path / "test_story.py"
    path.write_text(story_as_test(found, events, "orders.db"))
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "2 passed" in result.stdout, result.stdout + result.stderr
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,I", str(path)]
    checked = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_story_that_goes_another_way_fails_and_says_how(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given code that waits longer between attempts, then the story fails with both decisions."""
    _, events = story_of(log, "11-00a1")
    monkeypatch.setattr(settling, "backoff_seconds", lambda configuration, message_id, attempts: 7.123456)
    with pytest.raises(AssertionError, match=r"recorded: attempt 1 failed .* waits 1.5 s .*; now: .* waits 7.12 s"):
        assert_same_story(events)


def test_code_for_values_makes_the_same_values(log: EventLog) -> None:
    """Given every event of a log, then the code for it evaluates to an equal event."""
    scope = {"e": e, "QueueConfiguration": QueueConfiguration, **vars(model)}
    for record in log.read_all():
        assert eval(as_code(record.event), scope) == record.event
