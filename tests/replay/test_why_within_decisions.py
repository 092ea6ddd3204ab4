"""``why`` at every position of a log, also at those within a decision, where a queue is in no state that it acts on."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq.clock import VirtualClock
from mpreg_mq.events import EventLog, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee
from mpreg_mq.replay import Moment, Standing, why
from mpreg_mq.replay.wording import message_ids
from tests.support.running import Recorder, make_queue

WITHIN = "is within a decision; this is how it was at its end, position"


def story(guarantee: DeliveryGuarantee) -> MemoryEventLog:
    """Attempts that fail until the message is dead and the circuit opens, and one that two subscribers acknowledge."""
    log = MemoryEventLog()

    def fail(message: object) -> None:
        raise KeyError("sku")

    async def tell() -> None:
        clock = VirtualClock()
        async with make_queue(
            clock, log, max_retries=1, retry_backoff_seconds=5.0, circuit_breaker_failure_threshold=2
        ) as queue:
            queue.subscribe("broken", "order", fail)
            await queue.send_message("order", 1, guarantee)
            await clock.advance(10.0)
            queue.subscribe("one", "mail", Recorder())
            queue.subscribe("other", "mail", Recorder())
            await queue.send_message("mail", 2, guarantee)
            await clock.advance(10.0)

    asyncio.run(tell())
    return log


@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST])
def test_there_is_an_answer_at_every_position(guarantee: DeliveryGuarantee) -> None:
    """Given any position since a message was accepted, then there is an answer, and it is that of a whole decision."""
    assert_answers(story(guarantee))


def test_there_is_an_answer_at_every_position_of_the_incident(log: EventLog) -> None:
    """Given the incident's log, then the same holds for it."""
    assert_answers(log)


def assert_answers(log: EventLog) -> None:
    accepted: set[tuple[str, str]] = set()
    within = 0
    for record in log.read_all():
        stream = record.stream.removeprefix("queue:")
        if isinstance(record.event, e.MessageEnqueued):
            accepted.add((stream, record.event.message_id))
        for message_id in message_ids(record.event):
            if (stream, message_id) not in accepted:
                continue
            found = why(log, message_id, at=Moment(position=record.position), queue=stream)
            assert found.answer, f"at position {record.position}"
            assert found.standing is not Standing.WAITING or found.blockers
            if found.facts and WITHIN in found.facts[-1]:
                within += 1
                end = int(found.facts[-1].rsplit(" ", 1)[1])
                assert end > record.position
                whole = why(log, message_id, at=Moment(position=end), queue=stream)
                assert (found.answer, found.facts[:-1]) == (whole.answer, whole.facts)
    assert within, "some positions are within a decision"


def test_between_a_failure_and_its_consequence_the_retry_is_what_it_waits_for() -> None:
    """Given a position between a failed attempt and the retry that was planned with it, then the retry is told."""
    log = story(DeliveryGuarantee.AT_LEAST_ONCE)
    failed = next(record for record in log.read_all() if isinstance(record.event, e.DeliveryFailed))
    answer = why(log, "1", at=Moment(position=failed.position))
    assert answer.standing is Standing.WAITING
    assert "backoff until" in answer.answer
    assert answer.facts[-1] == f"position {failed.position} {WITHIN} {failed.position + 1}"
