"""Dead letters of a log that nobody has open: redriven and purged by the queue's own decider (D1)."""

from __future__ import annotations

import pytest

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.replay import replay
from mpreg_mq.replay.dead_letters import dead_letters, purge, redrive
from tests.support.history import History


def a_log(count: int = 3) -> MemoryEventLog:
    """Two queues, the first with dead letters."""
    history = History(max_retries=0, max_size=2).joined("a")
    for number in range(1, count + 1):
        history.sent(f"{number}-x").delivered(f"{number}-x", "a").failed(f"{number}-x", "a").dead(f"{number}-x", "a")
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, history.events)])
    other = e.QueueCreated(1000.0, "other", History().configuration)
    log.append([Append("queue:other", 0, [other])])
    return log


def test_dead_letters_are_listed_with_their_queue() -> None:
    """Given dead letters, then they come oldest first."""
    assert [(name, entry.ended.message_id) for name, entry in dead_letters(a_log())] == [
        ("q", "1-x"),
        ("q", "2-x"),
        ("q", "3-x"),
    ]


def test_a_dry_run_says_what_would_happen_and_changes_nothing() -> None:
    """Given a dry run, then new messages and their next steps are told, and the log has no event more."""
    log = a_log(1)
    before = log.last_position()
    (entry,) = redrive(log, "q", dry_run=True, clock=lambda: 2000.0)
    assert (entry.message_id, entry.target_queue) == ("1-x", "q")
    assert entry.then == "delivered to a, attempt 1, leased for 5 m"
    assert log.last_position() == before


def test_a_redrive_is_a_new_acceptance_while_there_is_room() -> None:
    """Given three dead letters and room for two, then the oldest two are accepted again and remember where from."""
    log = a_log()
    done = redrive(log, "q", clock=lambda: 2000.0)
    assert [entry.message_id for entry in done] == ["1-x", "2-x"]
    state = replay(log).states["q"]
    assert [message.event.redriven_from for message in state.messages.pending()] == ["q/1-x", "q/2-x"]
    assert state.dead_letters.ids() == ["3-x"]
    assert state.last_at == 2000.0


def test_chosen_ones_go_to_another_queue_in_one_commit() -> None:
    """Given an id by its number and another queue, then the message is there and the dead letter gone."""
    log = a_log()
    (entry,) = redrive(log, "q", ["2"], target_queue="other", clock=lambda: 2000.0)
    states = replay(log).states
    assert [message.id for message in states["other"].messages.pending()] == [entry.new_message_id]
    assert states["q"].dead_letters.ids() == ["1-x", "3-x"]
    assert entry.then.startswith("pending: no subscriber matches t; nobody is subscribed")


def test_what_is_refused_is_not_counted() -> None:
    """Given a dead letter that another queue refuses, and two that it takes, when one is to be redriven there, then the
    first is refused and the second accepted."""
    history = History(max_retries=0).joined("a")
    for number in (1, 2, 3):
        history.sent(f"{number}-x", headers={"key": "value"} if number == 1 else {})
        history.delivered(f"{number}-x", "a").failed(f"{number}-x", "a").dead(f"{number}-x", "a")
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, history.events)])
    log.append(
        [Append("queue:other", 0, [e.QueueCreated(1000.0, "other", History(max_headers_bytes=1).configuration)])]
    )
    refused: list[str] = []
    (entry,) = redrive(log, "q", limit=1, target_queue="other", clock=lambda: 2000.0, refused=refused.append)
    assert entry.message_id == "2-x"
    assert len(refused) == 1
    assert replay(log).states["q"].dead_letters.ids() == ["1-x", "3-x"]


def test_a_clock_behind_the_log_does_not_turn_time_back() -> None:
    """Given a machine whose clock is behind, then the new events are not before the old ones."""
    log = a_log(1)
    redrive(log, "q", clock=lambda: 5.0)
    times = [record.event.at for record in log.read_stream("queue:q")]
    assert times == sorted(times)


def test_an_unknown_or_ambiguous_id_changes_nothing() -> None:
    """Given an id that names no dead letter, or two, then it is an error and the log stays."""
    log = a_log(12)
    before = log.last_position()
    with pytest.raises(EventLogError, match="no dead letter whose id is or begins with '99'"):
        redrive(log, "q", ["99"])
    with pytest.raises(EventLogError, match="12 dead letters"):
        purge(log, "q", [""])
    with pytest.raises(EventLogError, match="there is no queue 'nope'"):
        redrive(log, "q", target_queue="nope")
    assert log.last_position() == before


def test_purged_dead_letters_are_gone() -> None:
    """Given ids, then these are purged; without ids all are; and purging nothing changes nothing."""
    log = a_log()
    assert purge(log, "q", ["1-x"], clock=lambda: 2000.0) == ["1-x"]
    assert purge(log, "q", clock=lambda: 2000.0) == ["2-x", "3-x"]
    before = log.last_position()
    assert purge(log, "q") == []
    assert log.last_position() == before
