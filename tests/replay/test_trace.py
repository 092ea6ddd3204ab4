"""The life of a message, and its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from mpreg_mq.events import Append, EventLog, MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.model import MessageOptions
from mpreg_mq.replay import Moment
from mpreg_mq.replay.subjects import MessageNotFoundError
from mpreg_mq.replay.trace import trace
from mpreg_mq.replay.trace_svg import trace_svg
from tests.support.history import History


def redriven_twice() -> MemoryEventLog:
    """A message that died in ``q``, was redriven to ``r``, died there, and was redriven there."""
    first = History(max_retries=0).joined("a").sent("1").delivered("1", "a").failed("1", "a").dead("1", "a")
    second = History(max_retries=0).joined("b")
    second.add(e.MessageEnqueued(1001.0, "7", "t", b"\xa1p", redriven_from="q/1"))
    second.at(1002.0).delivered("7", "b").failed("7", "b").dead("7", "b")
    second.add(e.MessageEnqueued(1003.0, "8", "t", b"\xa1p", redriven_from="r/7"))
    second.add(e.DeadLetterRedriven(1003.0, "7", "8", "r"))
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, first.events), Append("queue:r", 0, second.events)])
    log.append([Append("queue:q", len(first.events), [e.DeadLetterRedriven(1001.0, "1", "7", "r")])])
    return log


def test_each_event_with_the_time_since_the_one_before(log: EventLog) -> None:
    """Given a message that failed three times, then its life is told event by event."""
    found = trace(log, "11", queue="orders")
    assert (found.queue, found.message_id, found.topic) == ("orders", "11-00a1", "order.paid")
    assert found.finished
    assert [step.text.split(",")[0] for step in found.steps] == [
        "accepted on order.paid",
        "delivered to warehouse",
        "attempt 1 failed at warehouse: KeyError: 'sku'",
        "waits 1.5 s for another attempt",
        "delivered to warehouse",
        "attempt 2 failed at warehouse: KeyError: 'sku'",
        "waits 3.1 s for another attempt",
        "delivered to warehouse",
        "attempt 3 failed at warehouse: KeyError: 'sku'",
        "dead letter after 3 attempts",
    ]
    waits = [step.after_seconds for step in found.steps]
    assert waits[0] == 0.0
    assert waits[4] == pytest.approx(1.496, abs=0.001)
    assert sum(waits) == pytest.approx(found.steps[-1].record.event.at - found.steps[0].record.event.at)


@pytest.mark.parametrize(("message_id", "queue"), [("1", "q"), ("7", "r"), ("8", "r")])
def test_redrives_are_followed_both_ways(message_id: str, queue: str) -> None:
    """Given any of the messages that a dead letter became, then all of them are told, across queues."""
    found = trace(redriven_twice(), message_id, queue=queue)
    assert found.message_id == message_id
    assert found.messages == [("q", "1"), ("r", "7"), ("r", "8")]
    assert not found.finished
    assert [step.record.position for step in found.steps] == sorted(step.record.position for step in found.steps)


def test_where_a_topic_exchange_took_it_from() -> None:
    """Given a message that a route brought in, then its publisher, route and first id are told."""
    headers = {"mpreg-mq.publisher": "shop-3", "mpreg-mq.route": "order.#", "mpreg-mq.message-id": "p-9", "other": "x"}
    log = MemoryEventLog()
    history = History().add(e.MessageEnqueued(1001.0, "1", "t", b"\xa1p", options=MessageOptions(headers=headers)))
    log.append([Append("queue:q", 0, history.events)])
    assert trace(log, "1").origin == {"publisher": "shop-3", "published_as": "p-9", "route": "order.#"}


def test_a_trace_may_end_earlier(log: EventLog) -> None:
    """Given a moment, then the life is told up to it, and a message that was not there yet is not found."""
    assert len(trace(log, "11", queue="orders", until=Moment(position=108)).steps) == 3
    with pytest.raises(MessageNotFoundError, match="no message up to position 100"):
        trace(log, "11-00a1", until=Moment(position=100))


def test_the_picture_is_svg_with_a_lane_for_each_place(log: EventLog) -> None:
    """Given a trace, then its picture is well-formed, needs nothing else, and marks every event."""
    found = trace(log, "11", queue="orders")
    picture = trace_svg(found)
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert len(root.findall(f"{space}circle")) == len(found.steps)
    assert len(root.findall(f"{space}rect[@class='lease failed']")) == 3
    assert len(root.findall(f"{space}line[@class='wait']")) == 2
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    for circle in root.findall(f"{space}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 960


def test_the_picture_of_anything_is_well_formed() -> None:
    """Given names with markup in them, one event alone, and redrives, then the picture is still one."""
    log = MemoryEventLog()
    history = History().joined('<b>"').sent("<1>", topic="a&b").delivered("<1>", '<b>"')
    log.append([Append("queue:q", 0, history.events)])
    ElementTree.fromstring(trace_svg(trace(log, "<1>")))
    ElementTree.fromstring(trace_svg(trace(log, "<1>", until=Moment(position=3))))
    ElementTree.fromstring(trace_svg(trace(redriven_twice(), "7")))
