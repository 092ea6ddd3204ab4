"""What was answered, held against what the log holds: each level of durability is judged by its own promise."""

from __future__ import annotations

import pytest

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants.checker import recorded
from mpreg_mq.model import Durability
from mpreg_mq.projections import QueueState
from mpreg_mq.testing.answers import NEVER, Answer, Answers, End, forgotten_deliveries
from mpreg_mq.testing.clients import ClientHistory, Outcome

STREAM = "queue:q"


def log(*numbers: int) -> list[RecordedEvent]:
    """A log that accepted these messages."""
    return recorded([e.MessageEnqueued(float(number), f"m{number}", "t", b"") for number in numbers])


def answered(
    *durations: float, durability: Durability = Durability.BUFFERED, safe_from: int = NEVER, seconds: float = 0.05
) -> Answers:
    """Sends of m1, m2 and so on, one after another: each is asked for so many seconds after the one before."""
    answers, history, now = Answers(seconds, safe_from), ClientHistory(), 0.0
    for number, duration in enumerate(durations, 1):
        now += duration
        operation = history.invoke("sender", "send", f"k{number}", now)
        history.end(operation, Outcome.OK)
        answers.add(Answer(operation, STREAM, durability, (f"m{number}", None), 0))
    return answers


def broken(answers: Answers) -> list[str]:
    return [violation.rule for violation in answers.violations]


@pytest.mark.parametrize("end", list(End))
def test_a_committed_answer_is_never_lost(end: End) -> None:
    """Given an answer of a committed queue on a log that syncs, when it is not in the log, however the process ended,
    then that breaks I5; and nothing does while it is."""
    answers = answered(0.0, 1.0, durability=Durability.COMMITTED)
    answers.settle(log(1, 2), 0, end)
    assert (broken(answers), answers.lost) == ([], 0)
    answers.settle(log(1), 1, end)
    assert (broken(answers), answers.lost) == (["I5"], 1)


def test_a_power_cut_takes_what_came_after_the_checkpoint() -> None:
    """Given a log that does not sync, then a power cut may take what was answered after the last checkpoint, and a
    crash may not; what was answered before it, neither may."""
    for end, rules in [(End.POWER_CUT, []), (End.CRASH, ["I5"])]:
        answers = answered(0.0, 1.0, durability=Durability.COMMITTED, safe_from=2)
        answers.settle(log(1), 0, end)
        assert broken(answers) == rules
    answers = answered(0.0, 1.0, durability=Durability.COMMITTED, safe_from=2)
    answers.settle(log(), 0, End.POWER_CUT)
    assert broken(answers) == ["I5"]


def test_a_buffered_answer_may_be_lost_with_its_process_for_so_long() -> None:
    """Given answers of a buffered queue, then a crash may take those of the last moments, together no more than the
    queue risks."""
    for seconds, rules in [(0.04, []), (0.06, ["I5"])]:
        answers = answered(0.0, 1.0, seconds)
        answers.settle(log(1), 0, End.CRASH)
        assert (broken(answers), answers.lost) == (rules, 2)


def test_a_buffered_answer_is_not_lost_in_a_shutdown_or_later() -> None:
    """Given an answer of a buffered queue, when its process was shut down, or ended some time ago, then it is there."""
    for process, end in [(0, End.SHUTDOWN), (1, End.CRASH)]:
        answers = answered(0.0)
        answers.settle(log(), process, end)
        assert broken(answers) == ["I5"]


def test_what_is_lost_is_the_end() -> None:
    """Given answers of a buffered queue, when one is lost and a later one is not, then that breaks I7."""
    answers = answered(0.0, 0.01)
    answers.settle(log(2), 0, End.CRASH)
    assert broken(answers) == ["I7"]


def test_what_was_on_its_way_when_an_append_failed_is_lost_as_a_whole() -> None:
    """Given a buffered queue that gave up what was on its way, then that may be lost and what was sent later is there;
    but not one of those alone."""
    for numbers, rules in [((3,), []), ((2, 3), ["I7"])]:
        answers = answered(0.0, 0.01, 1.0)
        answers.rebuilt(STREAM, 4)
        answers.settle(log(*numbers), 0, End.CRASH)
        assert broken(answers) == rules


def test_an_id_names_one_message() -> None:
    """Given an answer with an id that another message was given before, lost or not, then that breaks I7."""
    answers = answered(0.0, 0.01)
    answers.settle(log(), 0, End.CRASH)
    history = ClientHistory()
    operation = history.invoke("sender", "send", "k3")
    history.end(operation, Outcome.OK)
    answers.add(Answer(operation, STREAM, Durability.BUFFERED, ("m2", None), 0))
    assert broken(answers) == ["I7"]


def test_of_acknowledgments_that_counted_twice_the_first_was_lost() -> None:
    """Given two acknowledgments of one message that counted, when the log holds one, then the first was lost, which a
    committed queue does not allow, and is forgotten."""
    answers, history = Answers(0.05), ClientHistory()
    for process in (0, 1):
        operation = history.invoke("worker", "acknowledge", "k1")
        history.end(operation, Outcome.OK)
        answers.add(Answer(operation, STREAM, Durability.COMMITTED, ("m1", "worker"), process))
    answers.settle(recorded([e.MessageAcknowledged(1.0, "m1", "worker", True)]), 1, End.CRASH)
    assert broken(answers) == ["I5", "I7"]
    assert answers.forgotten == {history.operations[0]}


def test_a_queue_in_memory_holds_what_it_answered_and_writes_nothing() -> None:
    """Given answers of a queue in memory, then it has them until its process ends, and the log has nothing of it."""
    for in_log, in_memory, rules in [((), (1, 2), []), ((), (1,), ["I5"]), ((1,), (1, 2), ["I5"])]:
        answers = answered(0.0, 0.01, durability=Durability.MEMORY)
        answers.settle_memory(log(*in_log), log(*in_memory))
        answers.settle(log(*in_log), 0, End.CRASH)
        assert (broken(answers), answers.lost) == (rules, 0)


def test_a_closed_queue_has_in_the_log_what_it_did() -> None:
    """Given a queue that was closed, when its log does not hold all that it did, then that breaks C3, unless it gave
    something up since; what only its timers did may be missing."""
    created = e.QueueCreated(0.0, "q", QueueConfiguration("q"))
    sent = e.MessageEnqueued(1.0, "m1", "t", b"")
    state = QueueState.replay([created, sent, e.MessageExpired(2.0, "m1")])
    cases: list[tuple[list[e.Event], int | None, list[str]]] = [
        ([created], None, ["C3"]),
        ([created], 1, ["C3"]),
        ([created], 3, []),
        ([created, sent], None, []),
    ]
    for events, rebuilt, rules in cases:
        answers = answered(0.0)
        if rebuilt is not None:
            answers.rebuilt(STREAM, rebuilt)
        answers.closed(recorded(events), {STREAM: state}, begun=2)
        assert broken(answers) == rules


def test_a_delivery_that_is_made_again_was_lost() -> None:
    """Given deliveries, then those that the log does not hold are forgotten, and those that were made again."""
    history = ClientHistory()
    for attempt in (1, 1, 2):
        history.invoke("worker", "deliver", "k", message_id="m1", attempt=attempt)
    records = recorded([e.MessageDelivered(1.0, "m1", "worker", "s", 1, 9.0)])
    first, _, third = history.operations
    assert list(forgotten_deliveries(records, history)) == [first, third]
